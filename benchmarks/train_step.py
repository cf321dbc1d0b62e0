"""The torch trainer: how much of the machine's matrix speed it turns into training, and what sharing prompts gains.

    python -m benchmarks.train_step [--smoke] [--output FILE] [--force]
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from actors.trainers.torch_trainer import TorchTrainer, TrainerSpec
from benchmarks.measure import Paired, paired, standard_main
from benchmarks.models import batch, bundled, smollm2_shape
from rlhaiku.config import AlgorithmConfig, load_config
from rlhaiku.types import TrainBatch

SGEMM_SIZE = 2048


def trainer(model: Path, scratch: Path, shared_prompt: bool) -> TorchTrainer:
    """The laptop preset's trainer over a model."""
    config = load_config("laptop", [f"trainer.shared_prompt={str(shared_prompt).lower()}"]).trainer
    weights = scratch / f"weights-{model.name}-{shared_prompt}"
    return TorchTrainer(TrainerSpec(str(model), weights, 2, 100, config, AlgorithmConfig()))


def sgemm(flops: float) -> None:
    """About as many fp32 operations in matrix products as told."""
    a, b = torch.rand(SGEMM_SIZE, SGEMM_SIZE), torch.rand(SGEMM_SIZE, SGEMM_SIZE)
    for _ in range(max(1, round(flops / (2 * SGEMM_SIZE**3)))):
        a @ b


def useful_flops(policy: TorchTrainer, made: TrainBatch) -> float:
    """6 operations per parameter and token that must be forwarded: prompts once per group, no padding."""
    parameters = sum(p.numel() for p in policy._model.parameters())
    prompts = sum(len(group.prompt_token_ids) for group in made.groups)
    return 6.0 * parameters * (prompts + made.num_loss_tokens)


def measure_model(name: str, model: Path, made: TrainBatch, scratch: Path, pairs: int) -> list[Paired]:
    """Sharing against not sharing, and the step against a matrix product of as many operations."""
    shared, unshared = trainer(model, scratch, True), trainer(model, scratch, False)
    losses = [each.train_step(made).loss for each in (shared, unshared)]
    assert abs(losses[0] - losses[1]) < 1e-5 * max(1.0, abs(losses[0])), losses
    flops = useful_flops(shared, made)
    started = time.perf_counter()
    sgemm(flops)
    speed = flops / (time.perf_counter() - started)
    shape = f"{len(made.groups)} x {len(made.groups[0].samples)}"
    return [
        paired(
            f"train step, {name}: prompt per completion / per group", lambda: unshared.train_step(made),
            lambda: shared.train_step(made), pairs=pairs, goal=1.8, note=f"{shape}, equal loss",
        ),
        replace(paired(
            f"train step, {name}: sgemm of as many operations / the step", lambda: sgemm(flops),
            lambda: shared.train_step(made), pairs=pairs, goal=0.5, note=f"{flops / 1e9:.1f} GFLOP useful",
        ), note=f"{flops / 1e9:.1f} GFLOP useful; sgemm {speed / 1e9:.0f} GFLOP/s"),
    ]


def measure(smoke: bool) -> list[Paired]:
    """The bundled model at the laptop preset's step, and the 135M shape at a smaller one."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        scratch = Path(name)
        if smoke:
            return measure_model("bundled", bundled(), batch(2, 2, 12, 4), scratch, 2)
        results = measure_model("bundled", bundled(), batch(16, 8, 60, 30), scratch, 5)
        return results + measure_model("135M", smollm2_shape(scratch / "model"), batch(4, 8, 60, 30), scratch, 3)


if __name__ == "__main__":
    standard_main(__doc__, measure)
