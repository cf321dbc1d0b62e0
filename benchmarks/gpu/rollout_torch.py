"""Rollouts of 1024 x 30 tokens in Qwen3-4B's shape by the torch engine with CUDA graphs: prompts once per completion
against once per group, the bare engine against the pool around it, and last stock vLLM's `LLM.generate` against it.

    python -m benchmarks.gpu.rollout_torch [--smoke] [--output FILE] [--force]
"""

import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import ray
import torch

from actors.engines import graph_decoding
from actors.engines.gpu_torch_engine import GpuTorchEngine
from actors.engines.torch_engine import EngineSpec, TorchEngine
from actors.kernels import has_kernels
from benchmarks.gpu.rollout import (
    GROUP_SIZE,
    GROUPS,
    MAX_TOKENS,
    PROMPT_TOKENS,
    STOCK,
    TUNED,
    StockVllm,
    asker,
    bare,
    measure_pool,
)
from benchmarks.gpu.roofline import DEVICE, Roofline, measure_roofline
from benchmarks.gpu.shapes import SMOKE, qwen3
from benchmarks.measure import Paired, paired, standard_main


class OnCard(GpuTorchEngine):
    """Serves version 0 with the weights of its model."""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self._weights.loaded = 0


class Rehearsed(TorchEngine):
    """The same without a card."""

    def __init__(self, spec: EngineSpec) -> None:
        super().__init__(spec)
        self._loaded = 0
        self._received = {0}


Unsynced = OnCard if DEVICE == "cuda" else Rehearsed


def kernels(engine: TorchEngine, groups: int, line: Roofline) -> None:
    """Prints the kernels of a rollout, how long the card had work, and the least time its bytes take."""
    from torch.profiler import ProfilerActivity, profile

    work = bare(engine, groups, asker(groups))
    work()
    started = time.perf_counter()
    work()
    wall_s = time.perf_counter() - started
    with profile(activities=[ProfilerActivity.CUDA if DEVICE == "cuda" else ProfilerActivity.CPU]) as profiled:
        work()
    sort = "self_device_time_total" if DEVICE == "cuda" else "self_cpu_time_total"
    print(profiled.key_averages().table(sort_by=sort, row_limit=18, max_name_column_width=70))
    print(f"one rollout: {wall_s:.3f} s, {groups * GROUP_SIZE * MAX_TOKENS / wall_s:.0f} tokens/s; at this card's copy "
          f"and matmul rates it cannot take less than {least_s(engine, groups, line):.3f} s", flush=True)


def least_s(engine: TorchEngine, groups: int, line: Roofline) -> float:
    """Seconds of a rollout at the card's own speed: for each token the larger of bytes and operations, and prompts."""
    model = engine._model
    config, parameters = model.config, sum(p.numel() for p in model.parameters())
    per_token = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
    rows = groups * GROUP_SIZE
    cache = groups * PROMPT_TOKENS * per_token + rows * MAX_TOKENS / 2 * per_token
    read_s = (2 * parameters + cache) / (2 * line.copy_bytes)  # a copy reads and writes each byte
    step_s = max(read_s, 2 * parameters * rows / line.matmul_flops)
    return MAX_TOKENS * step_s + 2 * parameters * groups * PROMPT_TOKENS / line.matmul_flops


def measure(smoke: bool) -> Iterator[Paired]:
    """What needs no vLLM first."""
    line = measure_roofline()
    note = str(line)
    size, groups, pairs = (SMOKE, 8, 2) if smoke else ("4B", GROUPS, 5)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        model = qwen3(Path(folder), size, weights=True)
        spec = EngineSpec(str(model), Path(folder) / "unused", 2, 1, groups, 0, True)
        engine = Unsynced(spec)
        kernels(engine, groups, line)
        name, take = f"rollout, Qwen3-{size} shape, {groups} x {GROUP_SIZE} x {MAX_TOKENS}", asker(groups)
        ungrouped = Unsynced(replace(spec, deterministic=False))
        yield paired(
            f"{name}: prompt per completion / per group, torch",
            bare(ungrouped, groups * GROUP_SIZE, asker(groups, each=1)), bare(engine, groups, take),
            pairs=pairs, goal=1.2, note=note,
        )
        del ungrouped
        if has_kernels():
            plain = Unsynced(spec)

            def without() -> None:
                with patch.object(graph_decoding, "has_kernels", lambda: False):
                    bare(plain, groups, take)()

            without()  # records its graph
            yield paired(f"{name}: without / with Triton kernels, torch", without, bare(engine, groups, take),
                         pairs=pairs, note=note)
            del plain, without
        if DEVICE == "cuda":
            torch.cuda.empty_cache()
            print(f"peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB in this process")
        share = 0.3 if DEVICE == "cuda" else 0
        actor = ray.remote(num_cpus=1, num_gpus=share, concurrency_groups={"control": 1})(Unsynced)
        yield measure_pool(f"{name}: bare torch engine / pool", lambda: actor.remote(spec), engine, groups, groups,
                           pairs, note)
        for what, options in (("stock vLLM", STOCK), ("tuned stock vLLM", TUNED)):
            with StockVllm(model, options, flat_logprobs=options is TUNED) as theirs:
                yield paired(f"{name}: {what} / our torch engine", bare(theirs, groups, take),
                             bare(engine, groups, take), pairs=pairs, goal=3, note=note)


if __name__ == "__main__":
    standard_main(__doc__, measure)
