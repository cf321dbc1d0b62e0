"""Rollouts of 1024 x 30 tokens in Qwen3-4B's shape by vLLM: stock `LLM.generate`, and the same with tuned flags,
against our vLLM engine; that against the pool around it; prompts once per completion against once per group; and where
the time of a step goes.

    python -m benchmarks.gpu.rollout_vllm [--smoke] [--output FILE] [--force]
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import ray

from actors.engines.vllm_engine import ENVIRONMENT, VllmEngine, VllmSpec
from benchmarks.gpu.rollout import (
    GROUP_SIZE,
    GROUPS,
    MAX_TOKENS,
    STOCK,
    TUNED,
    UNGROUPED,
    WAVE,
    StockVllm,
    asker,
    bare,
    measure_pool,
    profile,
)
from benchmarks.gpu.roofline import DEVICE, measure_roofline
from benchmarks.gpu.shapes import SMOKE, qwen3
from benchmarks.measure import Paired, paired, standard_main


class Unsynced(VllmEngine):
    """Serves version 0 with whatever vLLM started with."""

    def __init__(self, spec: VllmSpec) -> None:
        super().__init__(spec)
        self._weights.loaded = 0


def against_stock(model: Path, engine: VllmEngine, name: str, groups: int, pairs: int, note: str) -> Iterator[Paired]:
    """The goal's own comparison: everybody's first `LLM.generate`, then its time profiled."""
    take, wave = asker(groups), min(WAVE, groups)
    with StockVllm(model, STOCK) as theirs:
        profile(bare(theirs, groups, take), "stock, the caller's process")
        for what, size in (("one call", groups), (f"waves of {wave}", wave)):
            yield paired(f"{name}: stock / our vLLM engine, {what}", bare(theirs, groups, take),
                         bare(engine, size, take), pairs=pairs, goal=3, note=note)


def against_tuned(model: Path, engine: VllmEngine, name: str, groups: int, pairs: int, note: str) -> Iterator[Paired]:
    """The best that is known of `LLM.generate`, in one call and in waves; and what asking for groups gains there."""
    take, wave = asker(groups), min(WAVE, groups)
    with StockVllm(model, TUNED, flat_logprobs=True) as theirs:
        for what, size in (("one call", groups), (f"waves of {wave}", wave)):
            yield paired(f"{name}: tuned stock, {what} / our vLLM engine, waves of {wave}", bare(theirs, size, take),
                         bare(engine, wave, take), pairs=pairs, note=note)
        with StockVllm(model, UNGROUPED, flat_logprobs=True) as ungrouped:
            alone = asker(groups, each=1)
            yield paired(
                f"{name}: prompt per completion without a prefix cache / per group, tuned stock",
                bare(ungrouped, groups * GROUP_SIZE, alone), bare(theirs, groups, take), pairs=pairs, goal=1.2,
                note=note,
            )


def measure(smoke: bool) -> Iterator[Paired]:
    """One engine of ours throughout, and vLLM's own beside it, one comparison after the other."""
    line = str(measure_roofline())
    size, groups, pairs = (SMOKE, 8, 2) if smoke else ("4B", GROUPS, 5)
    wave = min(WAVE, groups)
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as folder:
        model = qwen3(Path(folder), size, weights=False)
        options = tuple(STOCK.items())
        spec = VllmSpec(str(model), Path(folder) / "unused", 2, 0, groups * GROUP_SIZE, MAX_TOKENS, options=options)
        name = f"rollout, Qwen3-{size} shape, {groups} x {GROUP_SIZE} x {MAX_TOKENS}"
        engine = Unsynced(spec)
        profile(bare(engine, groups, asker(groups)), "our vLLM engine, one call")
        yield from against_stock(model, engine, name, groups, pairs, line)
        share = 0.3 if DEVICE == "cuda" else 0
        actor = ray.remote(num_cpus=1, num_gpus=share, concurrency_groups={"control": 1})(Unsynced)
        yield measure_pool(f"{name}: bare vLLM engine / pool", lambda: actor.remote(spec), engine, wave, groups, pairs,
                           line)
        profile(bare(engine, wave, asker(groups)), f"our vLLM engine, waves of {wave}")
        yield from against_tuned(model, engine, name, groups, pairs, line)


if __name__ == "__main__":
    standard_main(__doc__, measure)
