"""What the chaos benchmark reads in a run's log is what the console writes there."""

from types import SimpleNamespace

import pytest

from benchmarks import chaos
from launch.console import ConsoleReporter
from rlhaiku.config import config_from_dict, load_config
from rlhaiku.errors import ActorDied
from tests.launch.test_sinks import report


@pytest.fixture
def log(capsys, tmp_path, monkeypatch):
    """What a console that is told of two deaths and a step prints."""
    monkeypatch.setenv("COLUMNS", "200")
    console = ConsoleReporter(load_config("laptop"), tmp_path)
    console.died("rollout engine 1 (pid 12 on node 0a1b2c3d)", "")
    console.died("reward worker 0 (pid 13 on node 0a1b2c3d)", "silent for 20 s")
    console.recovered("rollout engine 1", 4.5, 0.5)
    console.restarting(ActorDied("the trainer (pid 14 on node 0a1b2c3d), asked to train, died: killed"))
    console.recovered("the trainer", 9.0, 1.5)
    console.step(report(1))
    return capsys.readouterr().out


def test_deaths_and_recoveries_are_found_in_the_log(log):
    tally = chaos.Tally()
    victims = {12: "rollout engine", 13: "reward worker", 14: "trainer, stopped", 99: "trainer"}
    chaos._read_log(SimpleNamespace(text=lambda: log, victims=victims), tally)
    assert tally.noticed == {"rollout engine": 1, "reward worker": 1, "trainer, stopped": 1}
    assert tally.recoveries_s == {"rollout engine": [4.5], "trainer, stopped": [9.0]}
    assert tally.up_s == {"rollout engine": [0.5], "trainer, stopped": [1.5]}


def test_a_finished_step_is_found_in_the_log(log):
    assert len(chaos.STEP.findall(log)) == 1


def test_a_group_trained_twice_or_never_shows(tmp_path, monkeypatch):
    import torch

    for run in ("calm", "hit"):
        chaos.newest(tmp_path / run).mkdir(parents=True)
        torch.save({"weights": {"w": torch.ones(2)}}, chaos.newest(tmp_path / run) / "trainer.pt")
        (tmp_path / run / "metrics.jsonl").write_text("")
        twice_and_never = [0, *range(chaos.STEPS * chaos.GROUPS - 1)] if run == "hit" else range(192)
        rows = [f'{{"group": {group}}}\n' * chaos.SAMPLES for group in twice_and_never]
        (tmp_path / run / "samples.jsonl").write_text("".join(rows))
    tally = chaos.Tally()
    chaos.compare(tmp_path / "hit", tmp_path / "calm", tally)
    assert (tally.lost, tally.duplicated) == (1, 1)
    assert (tally.equal["weights"], tally.equal["metrics"], tally.equal["poems"]) == (1, 1, 0)


def test_its_workers_do_score():
    from launch.rewards import inline_below, reward_spec

    overrides = [part for part in chaos._settings() if part != "--set"]
    config = load_config("laptop", overrides)
    assert config_from_dict(config.model_dump()).reward.functions == {"benchmarks.chaos:slow_haiku": 1.0}
    assert not inline_below(reward_spec(config, None, None, chaos.Path()))
