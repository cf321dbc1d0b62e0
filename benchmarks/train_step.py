"""The torch trainer: how much of the machine's matrix speed it turns into training, and what sharing prompts gains.

    python -m benchmarks.train_step [--smoke] [--output FILE] [--force]
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

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


class Sgemm:
    """Matrix products in fp32, over operands that exist already, of as many operations as told."""

    def __init__(self, flops: float) -> None:
        self._a, self._b = torch.rand(SGEMM_SIZE, SGEMM_SIZE), torch.rand(SGEMM_SIZE, SGEMM_SIZE)
        self._whole, rest = divmod(flops, 2 * SGEMM_SIZE**3)
        self._columns = round(rest / (2 * SGEMM_SIZE**2))

    def __call__(self) -> None:
        """Whole products, and of the last one as many columns as are missing."""
        for _ in range(int(self._whole)):
            self._a @ self._b
        self._a @ self._b[:, : self._columns]


def useful_flops(policy: TorchTrainer, made: TrainBatch) -> float:
    """6 operations per parameter and token that must be forwarded: prompts once per group, no padding."""
    parameters = sum(p.numel() for p in policy._model.parameters())
    prompts = sum(len(group.prompt_token_ids) for group in made.groups)
    return 6.0 * parameters * (prompts + made.num_loss_tokens)


def measure_model(name: str, model: Path, made: TrainBatch, scratch: Path, pairs: int) -> Iterator[Paired]:
    """Sharing against not sharing, and the step against a matrix product of as many operations."""
    shared, unshared = trainer(model, scratch, True), trainer(model, scratch, False)
    stats = [each.train_step(made) for each in (shared, unshared)]
    losses = [each.loss for each in stats]
    assert abs(losses[0] - losses[1]) < 1e-5 * max(1.0, abs(losses[0])), losses
    assert stats[0].num_loss_tokens == stats[1].num_loss_tokens == made.num_loss_tokens
    flops = useful_flops(shared, made)
    shape = f"{len(made.groups)} x {len(made.groups[0].samples)}"
    yield paired(
        f"train step, {name}: prompt per completion / per group", lambda: unshared.train_step(made),
        lambda: shared.train_step(made), pairs=pairs, goal=1.8, note=f"{shape}, equal loss and tokens",
    )
    result = paired(
        f"train step, {name}: sgemm of as many operations / the step", Sgemm(flops), lambda: shared.train_step(made),
        pairs=pairs, goal=0.5, note=f"{shape}, {flops / 1e9:.1f} GFLOP useful",
    )
    speed, ours = (flops / median(seconds) / 1e9 for seconds in (result.baseline_s, result.ours_s))
    print(f"    sgemm {speed:.0f} GFLOP/s, the step {ours:.0f}", flush=True)
    yield replace(result, bound=f"sgemm {speed:.0f} GFLOP/s; the step {ours:.0f} GFLOP/s")


def measure(smoke: bool) -> Iterator[Paired]:
    """The bundled model at the laptop preset's step, and the 135M shape at a smaller one."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        scratch = Path(name)
        if smoke:
            yield from measure_model("bundled", bundled(), batch(2, 2, 12, 4), scratch, 2)
            return
        yield from measure_model("bundled", bundled(), batch(16, 8, 60, 30), scratch, 7)
        yield from measure_model("135M", smollm2_shape(scratch / "model"), batch(2, 8, 60, 30), scratch, 5)


if __name__ == "__main__":
    standard_main(__doc__, measure)
