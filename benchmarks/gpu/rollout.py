"""What the rollout benchmarks share: requests never seen before, stock vLLM, and engines with and without a pool."""

import cProfile
import os
import pstats
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import ray

from actors.crew import Crew
from actors.engines.vllm_engine import ENVIRONMENT
from actors.rollout_pool import RolloutPool
from actors.waiting import RayEvents
from benchmarks.measure import Paired, paired
from benchmarks.models import request
from launch.ray_runtime import local_ray
from rlhaiku.types import Group, GroupRequest

GROUPS, GROUP_SIZE, PROMPT_TOKENS, MAX_TOKENS = 128, 8, 60, 30
WAVE = 32
"""Groups a call: 256 completions, where a step of vLLM costs least per token."""
OPTIONS = (("load_format", "dummy"), ("kv_cache_memory_bytes", 9 << 30))


class Engine(Protocol):
    """Any of ours."""

    def generate(self, requests: Sequence[GroupRequest]) -> list[Group]:
        """Whole groups."""


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
    os.environ.update(ENVIRONMENT, VLLM_ENABLE_V1_MULTIPROCESSING="1")
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


def bare(engine: Engine, wave: int, take: Callable[[], Sequence[GroupRequest]]) -> Callable[[], None]:
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


def measure_pool(
    name: str, spawn: Callable[[], Any], engine: Engine, wave: int, groups: int, pairs: int
) -> Paired:
    """The pool around an actor against the same engine in this process; `spawn` starts the actor in a running Ray."""
    with local_ray(2, 1):
        crew = Crew("rollout engine", lambda place: spawn(), 1)
        events = RayEvents(600.0)
        pool = RolloutPool(crew, wave, events)
        result = paired(name, bare(engine, wave, asker(groups)), pooled(pool, events, asker(groups)), pairs=pairs,
                        goal=0.95)
        for actor in crew.actors:
            ray.kill(actor.handle)
    return result
