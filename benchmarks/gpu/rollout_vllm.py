"""Rollouts of 1024 x 30 tokens in Qwen3-4B's shape: stock `LLM.generate` against our vLLM engine, that against the pool
around it, prompts once per group against once per completion; and where the time of a step goes.

    python -m benchmarks.gpu.rollout_vllm [--smoke] [--output FILE] [--force]
"""

import os
import tempfile
from dataclasses import replace
from pathlib import Path

import ray

from actors.engines.vllm_engine import ENVIRONMENT, VllmEngine, VllmSpec
from benchmarks.gpu.rollout import (
    GROUP_SIZE,
    GROUPS,
    MAX_TOKENS,
    OPTIONS,
    WAVE,
    asker,
    bare,
    measure_pool,
    profile,
    stock,
)
from benchmarks.gpu.roofline import measure_roofline
from benchmarks.gpu.shapes import qwen3
from benchmarks.measure import Paired, paired, standard_main


class Unsynced(VllmEngine):
    """Serves version 0 with whatever vLLM started with."""

    def __init__(self, spec: VllmSpec) -> None:
        super().__init__(spec)
        self._weights.loaded = 0


def measure(smoke: bool) -> list[Paired]:
    """Everything, with all engines resident."""
    line = measure_roofline()
    size, groups, pairs = ("0.6B", 8, 2) if smoke else ("4B", GROUPS, 5)
    wave = min(WAVE, groups)
    with tempfile.TemporaryDirectory() as name:
        model = qwen3(Path(name), size, weights=False)
        spec = VllmSpec(str(model), Path(name) / "unused", 2, 0, groups * GROUP_SIZE, MAX_TOKENS, options=OPTIONS)
        theirs = stock(model, asker(groups))
        os.environ.update(ENVIRONMENT)
        engine = Unsynced(spec)
        shape = f"Qwen3-{size} shape, {groups} x {GROUP_SIZE} x {MAX_TOKENS}"
        profile(bare(engine, groups, asker(groups)), "one call")
        results = [
            paired(f"rollout, {shape}: stock / our vLLM engine, one call", theirs, bare(engine, groups, asker(groups)),
                   pairs=pairs, goal=3),
            paired(f"rollout, {shape}: stock / our vLLM engine, waves of {wave}", theirs,
                   bare(engine, wave, asker(groups)), pairs=pairs, goal=3),
            paired(f"rollout, {shape}: prompt per completion / per group, vLLM",
                   bare(engine, wave * GROUP_SIZE, asker(groups, each=1)), bare(engine, wave, asker(groups)),
                   pairs=pairs, goal=1.2),
        ]
        profile(bare(engine, wave, asker(groups)), f"waves of {wave}")
        actor = ray.remote(num_cpus=1, num_gpus=0.3, concurrency_groups={"control": 1})(Unsynced)
        results.append(measure_pool(f"rollout, {shape}: bare vLLM engine / pool", lambda: actor.remote(spec), engine,
                                    wave, groups, pairs))
    return [replace(each, note=str(line)) for each in results]


if __name__ == "__main__":
    standard_main(__doc__, measure)
