"""What a person sees of a run, on a terminal and in a log."""

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from launch import console as console_module
from launch.console import ConsoleReporter, comparison_view, rlhaiku_here, visible
from launch.live import LiveView, sparkline
from launch.placement import plan_gpus, plan_placement
from launch.rewards import as_run, name_of, reward_spec
from rlhaiku.checkpoints import RunState
from rlhaiku.config import load_config, read_config, write_config
from rlhaiku.errors import BadInput
from rlhaiku.evaluation import Answer, compare
from rlhaiku.health import advise
from rlhaiku.judge import JudgeSettings
from tests.launch.test_sinks import report
from tests.tiny import make_scored

ROW = {
    "step": 30, "reward/mean": 0.5, "reward/structure": 0.75, "reward/strict": 0.25, "reward/unscored": 0,
    "group/zero_variance_share": 0.125, "completion/truncated_share": 0.0, "completion/distinct_2": 0.9,
    "train/logprob_gap": 1e-5,
    "rollout/staleness_mean": 0.0, "rollout/tokens_per_s": 2500.0,
    "time/rollout_s": 1.0, "time/train_s": 2.0, "time/sync_s": 0.01,
}


def shown(rows, width=100):
    """What stands on a terminal of that width after these rows."""
    console = Console(force_terminal=True, width=width, color_system=None)
    view = LiveView(console, num_steps=80)
    for row in rows:
        view.update(row, "1:40")
    view.stop()
    capture = Console(width=width, color_system=None)
    with capture.capture() as captured:
        capture.print(view._view(rows[-1], "1:40"))
    return captured.get()


def test_the_live_view_has_everything_in_four_lines():
    lines = shown([ROW | {"reward/mean": reward} for reward in (0.1, 0.4, 0.3, 0.9)]).splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("step 30/80") and lines[0].rstrip().endswith("eta 1:40")
    assert "reward 0.900 ▁▃▂█" in lines[1]
    assert lines[1].rstrip().endswith("staleness 0.00")
    assert "structure 0.75  strict 0.25  flat groups 0.12  unscored 0" in lines[2]
    assert "rollout 1.00 s  train 2.00 s  sync 0.01 s  2500 tok/s" in lines[3]
    assert lines[3].index(" ") == 17, "the bar is 16 blocks and one for a phase too short to see"


def test_the_live_view_fits_80_columns():
    row = ROW | {"reward/topic": 0.98, "reward/unscored": 128, "time/rollout_s": 10.0, "rollout/tokens_per_s": 25000.0}
    lines = shown([row] * 200, width=80).splitlines()
    assert len(lines) == 4 and all(len(line.rstrip()) <= 80 for line in lines)


def test_the_last_view_stays_on_the_terminal():
    file = io.StringIO()
    view = LiveView(Console(file=file, force_terminal=True, width=100, color_system=None), num_steps=80)
    for reward in (0.1, 0.9):
        view.update(ROW | {"reward/mean": reward}, "1:40")
    before = len(file.getvalue())
    view.stop()
    ended = file.getvalue()[before:]
    assert "reward 0.900 ▁█" in ended and "\x1b[2K" not in ended.partition("reward 0.900")[2]


def test_an_end_at_once_and_a_changed_input_are_said(capsys, tmp_path):
    console = ConsoleReporter(load_config("laptop"), tmp_path / "run")
    console.resuming(RunState(5, 5), 2, ["step-000010: damaged"], ["settings", "reward"])
    console.ended_at_once()
    out = " ".join(capsys.readouterr().out.split())
    assert "unusable checkpoint step-000010: damaged; going back" in out
    assert "changed since the last attempt: settings, reward, so nothing is replayed" in out
    assert f"train --resume --output-dir {tmp_path / 'run'}" in out


def test_a_log_has_no_live_view(capsys):
    view = LiveView(Console(force_terminal=False), num_steps=80)
    view.update(ROW, "1:40")
    view.stop()
    assert not view.is_on and capsys.readouterr().out == ""


@pytest.mark.parametrize(("values", "expected"), [([1.0], "▁"), ([2, 2], "▁▁"), ([0, 1], "▁█"), ([0, 7, 3.5], "▁█▄")])
def test_sparkline(values, expected):
    assert sparkline(values) == expected


def test_the_sparkline_of_a_long_run_is_the_whole_run():
    assert sparkline([0.0] * 500 + [1.0] * 500) == "▁" * 24 + "█" * 24


@pytest.mark.parametrize(("change", "name", "words"), [
    ({"group/zero_variance_share": 0.75}, "flat", ("75% of the groups", "rollout.group_size")),
    ({"completion/truncated_share": 0.5}, "truncated", ("50% of the completions", "rollout.max_tokens")),
    ({"completion/distinct_2": 0.25}, "alike", ("word pairs 25% are distinct", "repeat_penalty=0.25")),
    ({"completion/distinct_2": 0.25, "reward/repeated": 0.5}, "alike", ("25%", "a larger reward.repeat_penalty")),
    ({"reward/unscored": 3}, "unscored", ("3 completions", "LLM_JUDGE_URL")),
    ({"train/logprob_gap": 0.3}, "gap", ("disagree by 0.300", "weight version")),
])
def test_advice_says_what_was_seen_and_what_to_change(change, name, words):
    (found,) = [advise(ROW | change)]
    assert found.keys() == {name}
    assert all(word in found[name].sign + found[name].remedy for word in words)


def test_a_healthy_step_needs_no_advice():
    assert advise(ROW) == {}


POEM = "an old silent pond\na frog jumps into the pond\nsplash silence again"


@pytest.fixture
def reporter(monkeypatch, tmp_path):
    """A reporter of a laptop run whose every word goes into `.said()`, as a log has it."""
    def make(*overrides, terminal=False, width=110, directory=tmp_path / "run", **options):
        file = io.StringIO()
        console = Console(file=file, force_terminal=terminal, width=width, color_system=None)
        monkeypatch.setattr(console_module, "make_console", lambda: console)
        made = ConsoleReporter(options.pop("config", load_config("laptop", overrides)), directory, **options)
        made.said = file.getvalue
        return made

    return make


def comparison():
    base = [Answer("t/1", "pond [/b]", "frog\x1b[2J"), Answer("t/2", "cat", "cat")]
    return compare(base, [Answer("t/1", "pond [/b]", POEM), Answer("t/2", "cat", POEM)])


def test_the_header_says_what_runs_where(reporter):
    laptop = load_config("laptop", ["num_steps=9"])
    told = reporter("num_steps=9")
    told.header(plan_placement(laptop, 2).describe(), 179, 61, 2048)
    said = " ".join(told.said().replace("│", " ").split())
    for words in (
        "model bundled", "preset laptop; changed: num_steps", "179 to train on, 61 held out", "16 prompts x 8 comp",
        "2 engines on 1 CPU each, trainer on 2, 1 reward worker", "reward haiku; judge: off; up to 2047 poems at once",
    ):
        assert words in said
    judged = reporter(judge=JudgeSettings(url="http://judge/v1", model="critic"))
    judged.header("", 1, 1, 0)
    assert "judge: critic at http://judge/v1" in judged.said() and "preset   laptop " in judged.said()


@pytest.mark.parametrize(("preset", "overrides", "words"), [
    ("one-gpu", [], "1 engine and the trainer on GPU 0"),
    ("reference", [], "engine i and trainer rank i on GPU i, 8 of them; 8 reward workers"),
    ("reference", ["cluster.colocate=false", "rollout.num_engines=4"], "engines on GPU 0-3; trainer ranks on GPU 4-7"),
    ("laptop", ["cluster.num_nodes=2"], "node 0: trainer, engine 0, reward worker 0; node 1: engine 1"),
])
def test_where_actors_are_placed_is_said_in_words(preset, overrides, words):
    config = load_config(preset, overrides)
    placement = plan_gpus(config) if config.trainer.backend == "megatron" else plan_placement(config, 2)
    assert words in placement.describe()


def test_a_log_has_one_plain_line_a_step_and_poems_now_and_then(reporter):
    told = reporter("output.poems_interval=2")
    told.step(report(1))
    assert told.said().count("\n") == 1 and "\x1b" not in told.said()
    assert told.said().startswith("step    1/80  reward 0.875  flat groups 0.00  ")
    told.step(report(2))
    poems = told.said().splitlines()[2:]
    assert poems[0].split() == ["topic0", "topic1"] and "poem 0" in poems[1]


def test_an_evaluation_is_one_line_in_a_log_and_folded_between_its_numbers_on_a_terminal(reporter):
    groups = report(1).groups
    log, terminal = reporter(), reporter(terminal=True, width=80)
    log.evaluation(RunState(40, 40), groups)
    terminal.evaluation(RunState(40, 40), groups)
    assert log.said().count("\n") == 1
    lines = terminal.said().splitlines()
    assert len(lines) == 2 and all(len(line) <= 80 for line in lines)
    assert log.said().split() == terminal.said().split() and lines[1].startswith("    topic ")


def test_a_terminal_that_cannot_move_its_cursor_gets_the_lines_of_a_log(reporter, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    told = reporter(terminal=True)
    told.step(report(1))
    assert told.said().startswith("step    1/80  reward 0.875")


def test_advice_is_given_again_only_after_ten_healthy_steps(reporter, monkeypatch):
    sick = {1, 3, 4, 14, 25}
    told = reporter("output.poems_interval=99")
    monkeypatch.setattr(console_module, "advise", lambda row: advise(
        ROW | {"completion/truncated_share": float(row["step"] in sick)}
    ))
    given = []
    for step in range(1, 30):
        before = told.said()
        told.step(report(step))
        if "were cut off" in told.said().removeprefix(before):
            given.append(step)
    assert given == [1, 25]


def test_words_from_outside_are_text(reporter, tmp_path):
    """Neither markup nor terminal escapes: a topic, a poem, a path, an error."""
    nasty = "[/b] \x1b]0;owned\x07"
    directory = tmp_path / "[/red]"
    told = reporter(f"model.path={nasty}", "output.poems_interval=1", directory=directory)
    told.header(nasty, 1, 1, 0)
    told.died(nasty, nasty)
    told.recovered(nasty, 1.0, 0.5)
    told.restarting(BadInput("rule", nasty, "remedy"))
    told.resuming(RunState(), 1, [nasty], [nasty])
    console_module.make_console().print(comparison_view(comparison()))
    told.end(comparison(), nasty)
    assert "\x1b" not in told.said() and "\x07" not in told.said()
    assert told.said().count("[/b] ␛]0;owned␇") >= 7
    assert "pond [/b]" in told.said() and "frog␛[2J" in told.said() and "[/red]" in told.said()
    assert visible("a\tb\nc\x9bd") == "a\tb\nc\ufffdd"


def test_the_end_is_before_and_after_and_commands_that_work_here(reporter, tmp_path, monkeypatch):
    (tmp_path / "run" / "checkpoints" / "step-000080").mkdir(parents=True)
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(Path(sys.executable).parents[2])
    told = reporter()
    told.end(comparison(), "look at it: report.html")
    said = told.said()
    places = [said.index(words) for words in ("held-out topics, before and after", "done in", "look at it:")]
    assert places == sorted(places)
    assert "│  5 an old silent pond" in said and "[+" in said
    command, run = rlhaiku_here(), tmp_path / "run"
    assert Path(command).exists() and not Path(command).is_absolute()
    for words in (
        f"{command} train --resume --output-dir {run} --set num_steps=160",
        f"{command} evaluate {run}/checkpoints/step-000080",
        f"{command} train --preset one-gpu",
        f"{command} train --set model.path=",
    ):
        assert words in said
    monkeypatch.chdir(tmp_path)
    assert Path(rlhaiku_here()).is_absolute()


def test_an_interrupted_run_says_how_to_go_on(reporter):
    told = reporter(directory=Path("a run"))
    told.end(None)
    assert "interrupted" in told.said() and "train --resume --output-dir 'a run'" in told.said()
    elsewhere = reporter(resume_with="modal run x --resume")
    elsewhere.end(comparison())
    assert "modal run x --resume --steps 160" in elsewhere.said() and "evaluate" not in elsewhere.said()


def test_a_reward_of_ones_own_is_named_and_never_lost_on_resume(reporter, tmp_path):
    def sea_words(prompt, text):
        return 1.0

    config = as_run(load_config("laptop"), sea_words, None)
    told = reporter(config=config, directory=tmp_path)
    told.header("", 1, 1, 0)
    told.end(comparison())
    assert "sea_words (your own)" in told.said() and "haiku;" not in told.said()
    [further] = [line for line in told.said().splitlines() if "resume=True" in line]
    assert "reward=sea_words" in further and "num_steps=160" in further and "train --resume" not in told.said()
    write_config(config, tmp_path / "config.toml")
    kept = read_config(tmp_path / "config.toml")
    assert kept == config
    with pytest.raises(BadInput, match=r"run\(config, reward=sea_words, output_dir=.*resume=True\)"):
        reward_spec(kept, None, None, tmp_path)
    assert reward_spec(kept, sea_words, None, tmp_path).functions == ((sea_words, 1.0),)
    assert as_run(kept, sea_words, None) == kept


def test_a_reward_beside_a_rubric_is_added_once(tmp_path):
    def sea_words(prompt, text):
        return 1.0

    def rubric(topic, poem, reference):
        return "?"

    config = as_run(load_config("laptop"), sea_words, rubric)
    assert list(config.reward.functions) == ["haiku", name_of(sea_words)]
    first = reward_spec(load_config("laptop"), sea_words, rubric, tmp_path)
    assert [weight for _, weight in reward_spec(config, sea_words, rubric, tmp_path).functions] == [1.0, 1.0]
    assert len(first.functions) == 2
    with pytest.raises(BadInput, match="rubric="):
        reward_spec(as_run(load_config("laptop"), None, rubric), None, None, tmp_path)


def test_what_can_be_imported_is_named_by_its_path():
    assert name_of(make_scored) == "tests.tiny:make_scored"
