"""What the rollout benchmarks share: requests never seen before, stock vLLM, and engines with and without a pool."""

import cProfile
import os
import pstats
from collections.abc import Callable, Mapping, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, Protocol

import ray

from actors.crew import Crew
from actors.engines.vllm_engine import ENVIRONMENT, capture_sizes
from actors.rollout_pool import RolloutPool
from actors.waiting import RayEvents
from benchmarks.gpu.roofline import DEVICE
from benchmarks.measure import Paired, paired
from benchmarks.models import request
from launch.ray_runtime import local_ray
from rlhaiku.types import GroupRequest

GROUPS, GROUP_SIZE, PROMPT_TOKENS, MAX_TOKENS = 128, 8, 60, 30
WAVE = 32
"""Groups a call: 256 completions, where a step of vLLM costs least per token."""
CONTEXT = 2048
"""Tokens that stock vLLM is told to expect of a sequence at most."""
STOCK = {"load_format": "dummy", "kv_cache_memory_bytes": 9 << 30}
TUNED = STOCK | {
    "compilation_config": {"cudagraph_capture_sizes": capture_sizes(1024)}, "performance_mode": "throughput",
}
"""Graphs for the whole batch (by default they end at 512), and twice the tokens a step."""
UNGROUPED = TUNED | {"kv_cache_memory_bytes": 16 << 30, "enable_prefix_caching": False}
"""Every completion has its prompt's keys and values to itself: 96 tokens x 147 kB x 1024 in Qwen3-4B's shape."""
_claims = count()


class Engine(Protocol):
    """Any of ours, or vLLM's own."""

    def generate(self, requests: Sequence[GroupRequest]) -> object:
        """Whole groups."""


def asker(groups: int, *, each: int = GROUP_SIZE) -> Callable[[], list[GroupRequest]]:
    """Requests with prompts that nobody has asked for before, so that no cache helps; `each`: completions per request.
    """

    def take() -> list[GroupRequest]:
        return [
            request(claim, prompt_tokens=PROMPT_TOKENS, max_tokens=MAX_TOKENS, group_size=each)
            for claim in islice(_claims, groups) for _ in range(GROUP_SIZE // each)
        ]

    return take


def use_settings(*, own_process: bool) -> None:
    """Our vLLM engine's environment, where the user has set none, and whether the next engine has its own process."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(own_process))


class StockVllm:
    """`LLM.generate` as anybody would call it, in vLLM's own engine process; ends with the context."""

    def __init__(self, model: Path, options: Mapping[str, Any], *, flat_logprobs: bool = False) -> None:
        """`flat_logprobs`: lists of numbers instead of an object for every token."""
        from vllm import LLM, envs

        envs.disable_envs_cache()  # an engine in this process has frozen what it read
        use_settings(own_process=True)
        self._flat_logprobs = flat_logprobs
        self._llm = LLM(str(model), dtype="bfloat16", skip_tokenizer_init=True, max_model_len=CONTEXT,
                        max_num_seqs=1024, gpu_memory_utilization=0.01, **options)
        use_settings(own_process=False)

    def __enter__(self) -> "StockVllm":
        return self

    def __exit__(self, *error: object) -> None:
        self._llm.llm_engine.engine_core.shutdown()

    def generate(self, requests: Sequence[GroupRequest]) -> object:
        """vLLM's own outputs, logprobs of the sampled tokens among them."""
        from vllm import SamplingParams

        wanted = SamplingParams(
            n=requests[0].group_size, temperature=1.0, max_tokens=MAX_TOKENS, ignore_eos=True, logprobs=0,
            flat_logprobs=self._flat_logprobs, detokenize=False,
        )
        prompts: list[Any] = [{"prompt_token_ids": list(each.prompt.token_ids)} for each in requests]
        return self._llm.generate(prompts, wanted, use_tqdm=False)


def bare(engine: Engine, wave: int, take: Callable[[], Sequence[GroupRequest]]) -> Callable[[], None]:
    """An engine without a pool, `wave` requests a call."""

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
    """Prints where this process spends a call, after a first one that compiles."""
    work()
    profiler = cProfile.Profile()
    profiler.runcall(work)
    print(f"profile: {name}")
    pstats.Stats(profiler).sort_stats("tottime").print_stats(18)


def measure_pool(
    name: str, spawn: Callable[[], Any], engine: Engine, wave: int, groups: int, pairs: int, note: str
) -> Paired:
    """The pool around an actor against the same engine in this process; `spawn` starts the actor in a running Ray."""
    with local_ray(2, int(DEVICE == "cuda")):
        crew = Crew("rollout engine", lambda place: spawn(), 1)
        events = RayEvents(600.0)
        pool = RolloutPool(crew, wave, events)
        take = asker(groups)
        result = paired(name, bare(engine, wave, take), pooled(pool, events, take), pairs=pairs, goal=0.95, note=note)
        for actor in crew.actors:
            ray.kill(actor.handle)
    return result
