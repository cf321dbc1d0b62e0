"""Rollouts of 1024 x 30 tokens in Qwen3-4B's shape, by our torch engine with CUDA graphs, by our vLLM engine, and by
stock `LLM.generate`, untouched and tuned: against each other, against the pool around them, and with prompts once per
completion against once per group; and where the time of a step goes.

    python -m benchmarks.gpu.rollout_speed [--smoke] [--output FILE] [--force]

Without vLLM only the torch engine is measured. With it, up to five engines are on the card at a time (120 GB).
"""

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import ray
import torch

from actors.engines import vllm_engine
from actors.engines.gpu_torch_engine import GpuTorchEngine
from actors.engines.torch_engine import EngineSpec, TorchEngine
from actors.engines.vllm_engine import VllmEngine, VllmSpec
from actors.kernels import has_kernels
from benchmarks.gpu.kernels import print_kernels, without_kernels
from benchmarks.gpu.rollout import (
    CONTEXT,
    GROUP_SIZE,
    GROUPS,
    MAX_TOKENS,
    PROMPT_TOKENS,
    STOCK,
    TUNED,
    UNGROUPED,
    WAVE,
    StockVllm,
    asker,
    bare,
    measure_pool,
    profile,
    use_settings,
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


class OnCardByVllm(VllmEngine):
    """Serves version 0 with whatever vLLM started with."""

    def __init__(self, spec: VllmSpec) -> None:
        super().__init__(spec)
        self._weights.loaded = 0


Unsynced = OnCard if DEVICE == "cuda" else Rehearsed


def kernels(engine: TorchEngine, groups: int, line: Roofline) -> None:
    """Prints the kernels of a rollout, how long the card had work, and the least time its bytes take."""
    work = bare(engine, groups, asker(groups))
    work()
    started = time.perf_counter()
    work()
    wall_s = time.perf_counter() - started
    print_kernels(work, 18)
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


def against_itself(
    engine: TorchEngine, spec: EngineSpec, name: str, groups: int, pairs: int, note: str
) -> Iterator[Paired]:
    """The torch engine: what asking for groups gains, and the kernels."""
    take = asker(groups)
    ungrouped = Unsynced(replace(spec, deterministic=False))
    yield paired(
        f"{name}: prompt per completion / per group, torch",
        bare(ungrouped, groups * GROUP_SIZE, asker(groups, each=1)), bare(engine, groups, take),
        pairs=pairs, goal=1.2, note=note,
    )
    if has_kernels():
        plain = Unsynced(spec)

        def without() -> None:
            with without_kernels():
                bare(plain, groups, take)()

        without()  # records its graph
        yield paired(f"{name}: without / with kernels, torch", without, bare(engine, groups, take),
                     pairs=pairs, note=note)


def actor(kind: type, spec: object) -> Callable[[], Any]:
    """Starts an engine as a Ray actor, beside others on the card."""
    share = 0.3 if DEVICE == "cuda" else 0
    made = ray.remote(num_cpus=1, num_gpus=share, concurrency_groups={"control": 1})(kind)
    return lambda: made.remote(spec)


def against_stock(
    spec: VllmSpec, torch_engine: TorchEngine, name: str, groups: int, pairs: int, note: str
) -> Iterator[Paired]:
    """The goal's own comparison, everybody's first `LLM.generate`, and then the best that is known of it, in one call
    and in waves; what asking for groups gains there; and our vLLM engine against the pool around it.
    """
    model, take, wave = Path(spec.model_path), asker(groups), min(WAVE, groups)
    by_torch = bare(torch_engine, groups, take)
    sizes = (("one call", groups), (f"waves of {wave}", wave))
    with StockVllm(model, TUNED, flat_logprobs=True) as tuned:
        with StockVllm(model, STOCK) as stock:
            in_one = bare(stock, groups, take)
            yield paired(f"{name}: stock vLLM / our torch engine", in_one, by_torch, pairs=pairs, goal=3, note=note)
            for what, size in sizes:
                yield paired(f"{name}: tuned stock vLLM, {what} / our torch engine", bare(tuned, size, take), by_torch,
                             pairs=pairs, note=note)
            ours = OnCardByVllm(spec)
            for what, size in sizes:
                yield paired(f"{name}: stock vLLM / our vLLM engine, tuned, {what}", in_one, bare(ours, size, take),
                             pairs=pairs, goal=3, note=note)
            profile(in_one, "stock, the caller's process")
        yield of_seeds(ours, name, groups, pairs, note)
        profile(bare(ours, groups, take), "our vLLM engine, one call")
        yield measure_pool(f"{name}: bare vLLM engine / pool, waves of {wave}", actor(OnCardByVllm, spec), ours, wave,
                           groups, pairs, note)
        with StockVllm(model, UNGROUPED, flat_logprobs=True) as ungrouped:
            yield paired(
                f"{name}: prompt per completion without a prefix cache / per group, tuned stock vLLM",
                bare(ungrouped, groups * GROUP_SIZE, asker(groups, each=1)), bare(tuned, groups, take), pairs=pairs,
                goal=1.2, note=note,
            )


def of_seeds(engine: VllmEngine, name: str, groups: int, pairs: int, note: str) -> Paired:
    """What it costs that vLLM draws every row by a generator of its own."""
    work = bare(engine, groups, asker(groups))

    def unseeded() -> None:
        with patch.object(vllm_engine, "group_seed", lambda seed, request: None):
            work()

    return paired(f"{name}: with / without a seed for each request, our vLLM engine", work, unseeded, pairs=pairs,
                  note=note)


def measure(smoke: bool) -> Iterator[Paired]:
    """What needs no vLLM first."""
    line = measure_roofline()
    note = str(line)
    size, groups, pairs = (SMOKE, 8, 2) if smoke else ("4B", GROUPS, 5)
    name = f"rollout, Qwen3-{size} shape, {groups} x {GROUP_SIZE} x {MAX_TOKENS}"
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        model, unused = str(qwen3(Path(folder), size, weights=True)), Path(folder) / "unused"
        spec = EngineSpec(model, unused, 2, 1, groups, 0, True)
        engine = Unsynced(spec)
        kernels(engine, groups, line)
        yield from against_itself(engine, spec, name, groups, pairs, note)
        if DEVICE == "cuda":
            gc.collect()  # the engines it was compared with
            torch.cuda.empty_cache()
            print(f"peak {torch.cuda.max_memory_allocated() / 1e9:.1f} GB in this process; "
                  f"{torch.cuda.mem_get_info()[0] / 1e9:.1f} GB are free for vLLM")
        yield measure_pool(f"{name}: bare torch engine / pool", actor(Unsynced, spec), engine, groups, groups, pairs,
                           note)
        if not find_spec("vllm"):
            print("vLLM is not installed: the rest is not measured")
            return
        use_settings(own_process=False)
        # Tuned like stock vLLM at its best: what is compiled for the one serves the other.
        options = TUNED | {"max_model_len": CONTEXT}
        by_vllm = VllmSpec(model, unused, 2, 0, groups * GROUP_SIZE, MAX_TOKENS, options=tuple(options.items()))
        yield from against_stock(by_vllm, engine, name, groups, pairs, note)


if __name__ == "__main__":
    standard_main(__doc__, measure)
