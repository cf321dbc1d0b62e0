"""The torch trainer on a GPU: how much of the card's matrix speed a step has, and what sharing prompts gains.

    python -m benchmarks.gpu.train_step [--smoke] [--output FILE] [--force]
"""

import gc
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from actors.trainers.torch_trainer import TorchTrainer, TrainerSpec
from benchmarks.gpu.roofline import Roofline, measure_roofline
from benchmarks.gpu.shapes import qwen3
from benchmarks.measure import Paired, paired, standard_main
from benchmarks.models import batch
from benchmarks.train_step import useful_flops
from rlhaiku.config import AlgorithmConfig, load_config
from rlhaiku.types import TrainBatch

MICRO_BATCH = {"0.6B": 16_384, "1.7B": 6144}
"""Tokens whose activations fit, without recomputing them."""


def trainer(model: Path, tokens: int, *, shared_prompt: bool = True, compiled: bool = False) -> TorchTrainer:
    """The one-gpu preset's, over a model in a folder that also takes its weights' handle."""
    config = load_config("one-gpu", [
        f"trainer.shared_prompt={str(shared_prompt).lower()}", f"trainer.micro_batch_tokens={tokens}",
    ]).trainer
    weights = model / f"weights-{shared_prompt}-{compiled}"
    return TorchTrainer(TrainerSpec(str(model), weights, 1, 100, config, AlgorithmConfig(), "cuda", compiled))


def against_matmul(name: str, policy: TorchTrainer, made: TrainBatch, line: Roofline, pairs: int) -> Paired:
    """A step beside as many useful operations in 8192^3 products; the ratio is the share of the matmul rate."""
    a, b = (torch.randn(8192, 8192, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    flops = useful_flops(policy, made)
    products = max(1, round(flops / (2 * 8192**3)))

    def matmul() -> None:
        for _ in range(products):
            a @ b
        torch.cuda.synchronize()

    result = paired(f"train step, {name}: matmul of as many operations / the step", matmul,
                    lambda: policy.train_step(made), pairs=pairs, goal=0.55)
    speed = result.ratio * line.matmul_flops / 1e12
    peak = torch.cuda.max_memory_allocated() / 1e9
    print(f"    {flops / 1e12:.1f} TFLOP useful, about {speed:.0f} TFLOP/s, peak {peak:.1f} GB", flush=True)
    return replace(result, note=f"{flops / 1e12:.1f} TFLOP useful, {speed:.0f} TFLOP/s; {line}")


def kernels(policy: TorchTrainer, made: TrainBatch) -> None:
    """Prints which kernels a step spends the card's time in, and how long the card had none."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        policy.train_step(made)
    print(profiled.key_averages().table(sort_by="self_device_time_total", row_limit=14, max_name_column_width=70))


def measure_model(size: str, groups: int, line: Roofline, pairs: int) -> list[Paired]:
    """Layers as they are and compiled, then sharing prompts against not."""
    made = batch(groups, 8, 60, 30)
    name = f"Qwen3-{size} shape, {groups} x 8 x 30"
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        model = qwen3(Path(folder), size, weights=True)
        results = [_one(f"{name}, compiled={flag}", trainer(model, MICRO_BATCH[size], compiled=flag), made, line, pairs)
                   for flag in (False, True)]
        _tidy()
        results.append(_sharing(name, partial(trainer, model, MICRO_BATCH[size]), made, line, pairs))
        _tidy()
    return results


def _one(name: str, policy: TorchTrainer, made: TrainBatch, line: Roofline, pairs: int) -> Paired:
    _tidy()
    print(f"    {name}: first loss {policy.train_step(made).loss:.5f}", flush=True)
    result = against_matmul(name, policy, made, line, pairs)
    kernels(policy, made)
    return result


def _sharing(
    name: str, make: Callable[..., TorchTrainer], made: TrainBatch, line: Roofline, pairs: int
) -> Paired:
    shared, unshared = (make(shared_prompt=flag) for flag in (True, False))
    losses = [each.train_step(made).loss for each in (shared, unshared)]
    assert abs(losses[0] - losses[1]) < 2e-3 * max(1.0, abs(losses[0])), losses
    return replace(
        paired(f"train step, {name}: prompt per completion / per group", lambda: unshared.train_step(made),
               lambda: shared.train_step(made), pairs=pairs, goal=1.6), note=f"losses {losses}; {line}",
    )


def _tidy() -> None:
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def measure(smoke: bool) -> list[Paired]:
    """Two sizes."""
    line = measure_roofline()
    if smoke:
        return measure_model("0.6B", 8, line, 2)
    return measure_model("0.6B", 128, line, 5) + measure_model("1.7B", 128, line, 4)


if __name__ == "__main__":
    standard_main(__doc__, measure)
