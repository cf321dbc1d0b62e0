"""Rollouts of 1024 x 30 tokens in Qwen3-4B's shape: stock `LLM.generate` against our engine, our engine against the
pool around it, prompts once per group against once per completion; and where the time of a step goes.

    python -m benchmarks.gpu.rollout [--smoke] [--output FILE] [--force]
"""

import cProfile
import os
import pstats
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import ray

from actors.crew import Crew
from actors.engines.vllm_engine import ENVIRONMENT, VllmEngine, VllmSpec
from actors.rollout_pool import RolloutPool
from actors.waiting import RayEvents
from benchmarks.gpu.roofline import measure_roofline
from benchmarks.gpu.shapes import qwen3
from benchmarks.measure import Paired, paired, standard_main
from benchmarks.models import request
from launch.ray_runtime import local_ray
from rlhaiku.types import GroupRequest

GROUPS, GROUP_SIZE, PROMPT_TOKENS, MAX_TOKENS = 128, 8, 60, 30
WAVE = 32
"""Groups a call: 256 completions, where a step of vLLM costs least per token."""
OPTIONS = (("load_format", "dummy"), ("kv_cache_memory_bytes", 10 << 30))


class Unsynced(VllmEngine):
    """Serves version 0 with whatever vLLM started with."""

    def __init__(self, spec: VllmSpec) -> None:
        super().__init__(spec)
        self._weights.loaded = 0


def asker(groups: int, *, each: int = GROUP_SIZE) -> Callable[[], list[GroupRequest]]:
    """Requests with prompts never seen before, so that no cache helps; `each`: completions per request."""
    claims = count(0, groups)

    def take() -> list[GroupRequest]:
        first = next(claims)
        return [
            request(claim, prompt_tokens=PROMPT_TOKENS, max_tokens=MAX_TOKENS, group_size=each)
            for claim in range(first, first + groups) for _ in range(GROUP_SIZE // each)
        ]

    return take


def stock(model: Path, take: Callable[[], Sequence[GroupRequest]]) -> Callable[[], None]:
    """`LLM.generate` as anybody would call it, in vLLM's own engine process."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
    from vllm import LLM, SamplingParams

    llm = LLM(str(model), dtype="bfloat16", skip_tokenizer_init=True, max_model_len=2048, max_num_seqs=1024,
              gpu_memory_utilization=0.01, **dict(OPTIONS))
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

    def work() -> None:
        requests = take()
        wanted = SamplingParams(
            n=requests[0].group_size, temperature=1.0, max_tokens=MAX_TOKENS, ignore_eos=True, logprobs=0,
            detokenize=False,
        )
        prompts: list[Any] = [{"prompt_token_ids": list(each.prompt.token_ids)} for each in requests]
        llm.generate(prompts, wanted, use_tqdm=False)

    return work


def bare(engine: VllmEngine, wave: int, take: Callable[[], Sequence[GroupRequest]]) -> Callable[[], None]:
    """Our engine in this process, `wave` requests a call."""

    def work() -> None:
        requests = take()
        for start in range(0, len(requests), wave):
            engine.generate(requests[start : start + wave])

    return work


def pooled(pool: RolloutPool, events: RayEvents, take: Callable[[], Sequence[GroupRequest]]) -> Callable[[], None]:
    """The pool around an actor, until all groups are back."""

    def work() -> None:
        requests = take()
        pool.submit(requests)
        done = 0
        while done < len(requests):
            done += len(events.next("groups").groups)  # type: ignore[union-attr]

    return work


def profile(work: Callable[[], None], name: str) -> None:
    """Prints where this process spends a call: with 1024 completions vLLM's own Python decides the speed."""
    profiler = cProfile.Profile()
    profiler.runcall(work)
    print(f"profile: {name}")
    pstats.Stats(profiler).sort_stats("tottime").print_stats(18)


def measure(smoke: bool) -> list[Paired]:
    """Everything, with all three engines resident."""
    line = measure_roofline()
    size, groups, pairs = ("0.6B", 8, 2) if smoke else ("4B", GROUPS, 5)
    wave = min(WAVE, groups)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with tempfile.TemporaryDirectory() as name:
        model = qwen3(Path(name), size, weights=False)
        spec = VllmSpec(str(model), Path(name) / "unused", 2, 0, groups * GROUP_SIZE, MAX_TOKENS, options=OPTIONS)
        theirs = stock(model, asker(groups))
        engine = Unsynced(spec)
        shape = f"Qwen3-{size} shape, {groups} x {GROUP_SIZE} x {MAX_TOKENS}"
        results = [
            paired(f"rollout, {shape}: stock / our vLLM engine, one call", theirs, bare(engine, groups, asker(groups)),
                   pairs=pairs, goal=3),
            paired(f"rollout, {shape}: stock / our vLLM engine, waves of {wave}", theirs,
                   bare(engine, wave, asker(groups)), pairs=pairs, goal=3),
            paired(f"rollout, {shape}: prompt per completion / per group", bare(engine, wave * GROUP_SIZE,
                   asker(groups, each=1)), bare(engine, wave, asker(groups)), pairs=pairs, goal=1.2),
        ]
        profile(bare(engine, groups, asker(groups)), "one call")
        profile(bare(engine, wave, asker(groups)), f"waves of {wave}")
        with local_ray(2, 1):
            crew = Crew("rollout engine", lambda place: _actor(replace(spec, options=OPTIONS)), 1)
            events = RayEvents(600.0)
            pool = RolloutPool(crew, wave, events)
            results.append(paired(f"rollout, {shape}: bare engine / pool", bare(engine, wave, asker(groups)),
                                  pooled(pool, events, asker(groups)), pairs=pairs, goal=0.95))
            for actor in crew.actors:
                ray.kill(actor.handle)
    return [replace(each, note=str(line)) for each in results]


def _actor(spec: VllmSpec) -> Any:  # noqa: ANN401  (a Ray handle)
    return ray.remote(num_cpus=1, num_gpus=0.3, concurrency_groups={"control": 1})(Unsynced).remote(spec)


if __name__ == "__main__":
    standard_main(__doc__, measure)
