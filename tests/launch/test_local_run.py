"""Whole runs on real Ray: a tiny model, real actors, real shared memory."""

import json
import sys

import pytest
import ray
import torch
from transformers import AutoModelForCausalLM

from actors.rollout_pool import RolloutPool
from launch import checks
from launch.evaluate import evaluate_pair
from launch.local import run
from launch.rewards import as_run
from rlhaiku.config import read_config, with_overrides
from rlhaiku.errors import BadInput
from rlhaiku.types import Unscored

STEPS = 4
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file


def count_vowels(prompt, text):
    """A reward that a byte model can earn."""
    return sum(text.count(vowel) for vowel in "aeiou")


def weights(directory):
    return torch.load(directory / "checkpoints" / f"step-{STEPS:06d}" / "trainer.pt", weights_only=True)["weights"]


def poems(directory, step=STEPS):
    samples = json.loads((directory / "eval" / f"step-{step:06d}.json").read_text())["samples"]
    return [row["text"] for row in samples]


def metrics(directory):
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/") and not k.endswith("_per_s")} for row in rows]


def assert_same_run(one, other):
    first, second = weights(one), weights(other)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert poems(one) == poems(other)
    assert metrics(one) == metrics(other)


@pytest.fixture(scope="module")
def reference_run(cluster, config, tmp_path_factory):
    directory = tmp_path_factory.mktemp("reference") / "run"
    run(config, reward=count_vowels, output_dir=directory)
    return directory


def test_a_run_leaves_everything_it_promises(reference_run, config):
    assert read_config(reference_run / "config.toml") == as_run(config, count_vowels, None)
    assert [row["step"] for row in metrics(reference_run)] == [1, 2, 3, 4]
    assert sorted(path.name for path in (reference_run / "checkpoints").iterdir()) == ["step-000002", "step-000004"]
    evaluations = {"step-000000.json", "step-000002.json", "step-000004.json", "summary.json"}
    assert {path.name for path in (reference_run / "eval").iterdir()} == evaluations
    assert len((reference_run / "samples.jsonl").read_text().splitlines()) == STEPS * 6 * 3
    assert max(row["train/logprob_gap"] for row in metrics(reference_run)) < 1e-4
    assert [row["alarm/logprob_gap"] for row in metrics(reference_run)] == [0] * STEPS
    assert poems(reference_run, 0) != poems(reference_run)


def test_weights_moved(reference_run, config):
    base = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    trained = weights(reference_run)
    assert any(not torch.equal(parameter, trained[name]) for name, parameter in base.named_parameters())


@pytest.mark.parametrize("overrides", [
    [],
    ["rollout.num_engines=2", "reward.num_workers=2"],
    ["rollout.num_engines=3"],
    ["rollout.num_engines=3", "cluster.num_nodes=2"],
], ids=["again", "two engines, two workers", "three engines", "weights through relays"])
def test_same_seed_same_bits(reference_run, config, tmp_path, overrides, monkeypatch):
    monkeypatch.setattr(checks, "available_cores", lambda: 3)
    run(with_overrides(config, overrides), reward=count_vowels, output_dir=tmp_path / "run")
    assert_same_run(reference_run, tmp_path / "run")


def test_another_seed_another_run(reference_run, config, tmp_path):
    run(with_overrides(config, ["seed=1"]), reward=count_vowels, output_dir=tmp_path / "run")
    assert poems(tmp_path / "run") != poems(reference_run)


def test_resumed_equals_uninterrupted(reference_run, config, tmp_path):
    directory = tmp_path / "run"
    run(with_overrides(config, ["num_steps=2"]), reward=count_vowels, output_dir=directory)
    result = run(config, reward=count_vowels, output_dir=directory, resume=True)
    assert result.finished
    assert_same_run(reference_run, directory)


def test_one_step_ahead_is_deterministic_and_stale(cluster, config, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "available_cores", lambda: 3)
    directories = [tmp_path / "one", tmp_path / "two"]
    for engines, directory in enumerate(directories, start=1):
        overrides = ["rollout.max_staleness=1", f"rollout.num_engines={engines}"]
        run(with_overrides(config, overrides), reward=count_vowels, output_dir=directory)
    assert_same_run(*directories)
    assert [row["rollout/staleness_mean"] for row in metrics(directories[0])] == [0, 1, 1, 1]


def test_failed_rewards_are_counted_never_zero(cluster, config, tmp_path):
    def moody(prompt, text):
        if len(text) % 2:
            raise ValueError("no score today")
        return Unscored("out of ideas") if len(text) % 3 == 0 else 1.0 + len(text)

    run(with_overrides(config, ["num_steps=2"]), reward=moody, output_dir=tmp_path / "run")
    rows = metrics(tmp_path / "run")
    assert all(row["reward/unscored"] > 0 for row in rows)
    assert all(row["reward/mean"] > 1 for row in rows)
    samples = [json.loads(line) for line in (tmp_path / "run" / "samples.jsonl").read_text().splitlines()]
    assert {"out of ideas", "ValueError: no score today"} == {row["unscored"] for row in samples if "unscored" in row}


def test_a_checkpoint_is_scored_against_its_base(reference_run, config):
    trained = reference_run / "checkpoints" / f"step-{STEPS:06d}" / "hf"
    comparison = evaluate_pair(config, base=config.model.path, trained=str(trained))
    summary = json.loads((reference_run / "eval" / "summary.json").read_text())
    assert comparison.to_dict() == summary


def test_a_finished_run_is_not_overwritten(reference_run, config):
    with pytest.raises(BadInput, match="must not hold another run"):
        run(config, output_dir=reference_run)


def test_an_engine_killed_in_the_middle_changes_nothing(reference_run, config, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "available_cores", lambda: 3)
    killed = []

    def kill_one(self, requests, submit=RolloutPool.submit):
        submit(self, requests)
        if requests[0].key.claim == 6 and not requests[0].key.is_eval:
            killed.append(self._engines.actors[0])
            ray.kill(killed[0].handle)

    monkeypatch.setattr(RolloutPool, "submit", kill_one)
    run(with_overrides(config, ["rollout.num_engines=2"]), reward=count_vowels, output_dir=tmp_path / "run")
    assert killed
    assert_same_run(reference_run, tmp_path / "run")
