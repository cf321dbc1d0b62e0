"""The torch trainer on a GPU: how much of the card's matrix speed a step has, and what sharing prompts gains.

    python -m benchmarks.gpu.train_step [--sizes 1.7B 0.6B 4B] [--compiled] [--smoke] [--output FILE] [--force]
"""

import gc
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch

from actors.kernels import has_kernels
from actors.trainers.torch_trainer import TorchTrainer, TrainerSpec
from benchmarks.gpu.kernels import print_kernels, without_kernels
from benchmarks.gpu.roofline import DEVICE, GEMM_SIZE, Roofline, measure_roofline, wait_for_device
from benchmarks.gpu.shapes import SMOKE, qwen3
from benchmarks.measure import Paired, begin, paired, parser
from benchmarks.models import batch
from benchmarks.train_step import useful_flops
from rlhaiku.config import AlgorithmConfig, load_config
from rlhaiku.types import TrainBatch

MICRO_BATCH = {"tiny": 1024, "0.6B": 8192, "1.7B": 6144, "4B": 4096}
"""Tokens whose activations fit, without recomputing them."""
BIG_CARD = 120e9
"""Bytes of a card that 4B fits on whole: weights, fp32 masters, gradients and moments are 73 GB, and activations."""


def trainer(model: Path, tokens: int, *, compiled: bool = False) -> TorchTrainer:
    """The one-gpu preset's, over a model in a folder that also takes its weights' handle; its steps change next to
    nothing, so that the same batch has the same loss again.
    """
    config = load_config("one-gpu", [f"trainer.micro_batch_tokens={tokens}", "trainer.lr=1e-12"]).trainer
    spec = TrainerSpec(str(model), model / "weights", 1, 100, config, AlgorithmConfig(), DEVICE, compiled)
    return TorchTrainer(spec)


def against_matmul(name: str, policy: TorchTrainer, made: TrainBatch, line: Roofline, pairs: int) -> Paired:
    """A step beside as many useful operations in 8192^3 products; the ratio is the share of the matmul rate."""
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    flops = useful_flops(policy, made)
    products = max(1, round(flops / (2 * GEMM_SIZE**3)))

    def matmul() -> None:
        for _ in range(products):
            a @ b
        wait_for_device()

    result = paired(f"train step, {name}: matmul of as many operations / the step", matmul,
                    lambda: policy.train_step(made), pairs=pairs, goal=0.55, note=f"{flops / 1e12:.1f} TFLOP; {line}")
    speed = result.ratio * line.matmul_flops / 1e12
    peak = torch.cuda.max_memory_reserved() / 1e9 if DEVICE == "cuda" else 0.0
    print(f"    {flops / 1e12:.1f} TFLOP useful, about {speed:.0f} TFLOP/s, reserved {peak:.1f} GB", flush=True)
    return replace(result, note=f"{flops / 1e12:.1f} TFLOP useful, {speed:.0f} TFLOP/s; {line}")


def measure_model(size: str, groups: int, line: Roofline, pairs: int, *, compiled: bool = False) -> Iterator[Paired]:
    """A step against the matmul, and sharing prompts against not; or, `compiled`, the first with its layers compiled.
    """
    made = batch(groups, 8, 60, 30)
    name = f"Qwen3-{size} shape, {groups} x 8 x 30{', compiled' * compiled}"
    _tidy()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        policy = trainer(qwen3(Path(folder), size, weights=True), MICRO_BATCH[size], compiled=compiled)
    loss = fitted(policy, made)
    print(f"    {name}: first loss {loss:.5f}, {policy._spec.trainer.micro_batch_tokens} tokens at once", flush=True)
    yield against_matmul(name, policy, made, line, pairs)
    print_kernels(lambda: policy.train_step(made), 14)
    if not compiled:
        yield sharing(name, policy, made, line, pairs)
        if has_kernels():
            yield of_kernels(name, policy, made, line, pairs)


def with_settings(policy: TorchTrainer, **settings: object) -> TorchTrainer:
    """The same trainer, told otherwise from its next step on."""
    policy._spec = replace(policy._spec, trainer=policy._spec.trainer.model_copy(update=settings))
    return policy


def fitted(policy: TorchTrainer, made: TrainBatch) -> float:
    """The loss of a first step, with micro-batches half as big until it fits the card."""
    while True:
        tokens = policy._spec.trainer.micro_batch_tokens
        try:
            return policy.train_step(made).loss
        except torch.OutOfMemoryError:
            if tokens < 1024:
                raise
        with_settings(policy, micro_batch_tokens=tokens // 2)
        _tidy()


def of_kernels(name: str, policy: TorchTrainer, made: TrainBatch, line: Roofline, pairs: int) -> Paired:
    """The same trainer by torch alone, against Triton's kernels for the vocabulary and Liger's for layers; both without
    graphs, which would go on launching the kernels they were made with.
    """
    if layers := policy._policy._layers:
        layers.may_capture = False
        layers._graphs.clear()

    def step(is_used: bool) -> float:
        with nullcontext() if is_used else without_kernels():
            return policy.train_step(made).loss

    losses = [step(flag) for flag in (True, False)]
    assert abs(losses[0] - losses[1]) < 2e-3 * max(1.0, abs(losses[0])), losses
    return paired(f"train step, {name}: without / with kernels", lambda: step(False), lambda: step(True),
                  pairs=pairs, note=f"losses {losses}; {line}")


def sharing(name: str, policy: TorchTrainer, made: TrainBatch, line: Roofline, pairs: int) -> Paired:
    """The same trainer with prompts once per completion, against once per group."""

    def step(shared_prompt: bool) -> float:
        return with_settings(policy, shared_prompt=shared_prompt).train_step(made).loss

    losses = [step(flag) for flag in (True, False)]
    assert abs(losses[0] - losses[1]) < 2e-3 * max(1.0, abs(losses[0])), losses
    return paired(f"train step, {name}: prompt per completion / per group", lambda: step(False), lambda: step(True),
                  pairs=pairs, goal=1.6, note=f"losses {losses}; {line}")


def _tidy() -> None:
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main() -> None:
    """One size after the other, the most telling first."""
    made = parser(__doc__)
    made.add_argument("--sizes", nargs="+", choices=MICRO_BATCH, default=["1.7B", "0.6B", "4B"])
    made.add_argument("--compiled", action="store_true", help="each once more with its layers compiled: a minute")
    options = made.parse_args()
    results = begin(options)
    line = measure_roofline()
    sizes, groups, pairs = ([SMOKE], 8, 2) if options.smoke else (options.sizes, 128, 4)
    if DEVICE == "cuda" and torch.cuda.get_device_properties(0).total_memory < BIG_CARD:
        sizes = [size for size in sizes if size != "4B"]
    for compiled in (False, True)[: 1 + options.compiled]:
        for size in sizes:
            for result in measure_model(size, groups, line, pairs, compiled=compiled):
                results.add_paired(result)


if __name__ == "__main__":
    main()
