"""Rollouts of 1024 x 30 tokens in Qwen3-4B's shape: stock vLLM's `LLM.generate` against the torch engine with CUDA
graphs, that against the pool around it, prompts once per group against once per completion.

    python -m benchmarks.gpu.rollout_torch [--smoke] [--output FILE] [--force]
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path

import ray
import torch

from actors.engines.gpu_torch_engine import GpuTorchEngine
from actors.engines.torch_engine import EngineSpec
from benchmarks.gpu.rollout import GROUP_SIZE, GROUPS, MAX_TOKENS, asker, bare, measure_pool, stock
from benchmarks.gpu.roofline import measure_roofline
from benchmarks.gpu.shapes import qwen3
from benchmarks.measure import Paired, paired, standard_main


class Unsynced(GpuTorchEngine):
    """Serves version 0 with the weights of its model."""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self._weights.loaded = 0


def kernels(engine: GpuTorchEngine, groups: int) -> None:
    """Prints the kernels of a rollout, and how long the card had work."""
    from torch.profiler import ProfilerActivity, profile

    work = bare(engine, groups, asker(groups))
    work()
    started = time.perf_counter()
    work()
    wall_s = time.perf_counter() - started
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        work()
    print(f"one rollout: {wall_s:.3f} s, {groups * GROUP_SIZE * MAX_TOKENS / wall_s:.0f} tokens/s")
    print(profiled.key_averages().table(sort_by="self_device_time_total", row_limit=18, max_name_column_width=70))


def measure(smoke: bool) -> list[Paired]:
    """Everything, with all engines resident."""
    line = measure_roofline()
    size, groups, pairs = ("0.6B", 8, 2) if smoke else ("4B", GROUPS, 5)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        model = qwen3(Path(name), size, weights=True)
        spec = EngineSpec(str(model), Path(name) / "unused", 2, 1, groups, 0, True)
        engine = Unsynced(spec)
        kernels(engine, groups)
        theirs = stock(model, asker(groups))
        shape = f"Qwen3-{size} shape, {groups} x {GROUP_SIZE} x {MAX_TOKENS}"
        actor = ray.remote(num_cpus=1, num_gpus=0.3, concurrency_groups={"control": 1})(Unsynced)
        results = [
            paired(f"rollout, {shape}: stock vLLM / our torch engine", theirs, bare(engine, groups, asker(groups)),
                   pairs=pairs, goal=3),
            measure_pool(f"rollout, {shape}: bare torch engine / pool", lambda: actor.remote(spec), engine, groups,
                         groups, pairs),
        ]
        ungrouped = Unsynced(replace(spec, deterministic=False))
        results.append(paired(
            f"rollout, {shape}: prompt per completion / per group, torch",
            bare(ungrouped, groups * GROUP_SIZE, asker(groups, each=1)), bare(engine, groups, asker(groups)),
            pairs=pairs, goal=1.2,
        ))
        print(f"peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB in this process")
    return [replace(each, note=str(line)) for each in results]


if __name__ == "__main__":
    standard_main(__doc__, measure)
