"""What a person sees of a run, on a terminal and in a log."""

from collections import deque

import pytest
from rich.console import Console

from launch.console import ConsoleReporter
from launch.live import LiveView, sparkline
from rlhaiku.checkpoints import RunState
from rlhaiku.config import load_config
from rlhaiku.health import advise

ROW = {
    "step": 30, "reward/mean": 0.5, "reward/structure": 0.75, "reward/strict": 0.25, "reward/unscored": 0,
    "group/zero_variance_share": 0.125, "completion/truncated_share": 0.0, "train/logprob_gap": 1e-5,
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
    assert "structure 0.75  strict 0.25  flat groups 0.12  staleness 0.00  unscored 0" in lines[2]
    assert "rollout 1.00 s  train 2.00 s  sync 0.01 s  2500 tok/s" in lines[3]
    assert lines[3].index(" ") == 25, "the bar is 24 blocks and one for a phase too short to see"


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
    assert sparkline(deque(values)) == expected


@pytest.mark.parametrize(("change", "name", "words"), [
    ({"group/zero_variance_share": 0.75}, "flat", ("75% of the groups", "rollout.group_size")),
    ({"completion/truncated_share": 0.5}, "truncated", ("50% of the completions", "rollout.max_tokens")),
    ({"reward/unscored": 3}, "unscored", ("3 completions", "LLM_JUDGE_URL")),
    ({"train/logprob_gap": 0.3}, "gap", ("disagree by 0.300", "weight version")),
])
def test_advice_says_what_was_seen_and_what_to_change(change, name, words):
    (found,) = [advise(ROW | change)]
    assert found.keys() == {name}
    assert all(word in found[name].sign + found[name].remedy for word in words)


def test_a_healthy_step_needs_no_advice():
    assert advise(ROW) == {}
