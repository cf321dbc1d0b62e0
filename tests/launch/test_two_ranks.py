"""A run on real Ray whose trainer is two ranks, over gloo as on CPUs: one of them dies and the run goes on."""

import json
import os
import sys
from dataclasses import replace

import pytest
import ray
import torch

from launch import checks, start
from launch.local import run
from rlhaiku.config import with_overrides

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import a test file
pytestmark = pytest.mark.usefixtures("cluster")


def two_ranks(config, num_cores, plan=checks.plan_placement):
    return replace(plan(config, num_cores), rank_bundles=(0, 0))


def dying_rank(marker):
    """A TorchTrainer whose rank 1 dies once, inside step 2."""

    class DyingRank(start.TorchTrainer):
        def train_step(self, batch):
            if self._spec.rank == 1 and batch.step == 2 and not marker.exists():
                marker.touch()
                self._policy.clip_gradients = lambda max_norm: os._exit(1)
            return super().train_step(batch)

    return DyingRank


def rows_of(directory):
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith("time/") and not k.endswith("_per_s")} for row in rows]


def test_two_ranks_train_and_one_that_dies_is_restarted_from_the_checkpoint(config, tmp_path, monkeypatch, capsys):
    config = with_overrides(config, ["output.save_interval=1", "num_steps=3", "rollout.num_engines=1"])
    run(config, output_dir=tmp_path / "alone")
    monkeypatch.setattr(checks, "available_cores", lambda: 3)
    monkeypatch.setattr(checks, "plan_placement", two_ranks)
    run(config, output_dir=tmp_path / "calm")
    monkeypatch.setattr(start, "TorchTrainer", dying_rank(tmp_path / "died"))
    result = run(config, output_dir=tmp_path / "killed")
    assert result.finished and (tmp_path / "died").exists()
    assert [who for who, _ in result.recoveries] == ["the trainer"]
    assert "starting again from the newest checkpoint" in capsys.readouterr().out

    alone, calm, killed = (rows_of(tmp_path / name) for name in ("alone", "calm", "killed"))
    assert killed == calm and len(calm) == 3
    for key in ("train/loss", "train/grad_norm", "train/logprob_gap", "train/num_forward_tokens"):
        assert calm[0][key] == pytest.approx(alone[0][key], rel=1e-4, abs=1e-6), key
    saved = "checkpoints/step-000003/trainer.pt"
    weights = [torch.load(tmp_path / name / saved, weights_only=True)["weights"] for name in ("calm", "killed")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
