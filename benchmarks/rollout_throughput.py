"""Tokens per second of rollouts: the pool against its engine driven bare, grouped prompts against ungrouped, fixed
tiles against shrinking ones.

    python -m benchmarks.rollout_throughput [--smoke] [--output FILE] [--force]
"""

import tempfile
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import ray
from transformers import AutoModelForCausalLM

from actors.crew import Crew
from actors.engines.torch_engine import EngineSpec, TorchEngine
from actors.rollout_pool import RolloutPool
from actors.waiting import RayEvents
from actors.weight_slots import WeightSlots
from benchmarks.measure import Paired, paired, standard_main
from benchmarks.models import bundled, request
from launch.local import load_prompts
from launch.ray_runtime import local_ray
from rlhaiku.config import load_config
from rlhaiku.types import GroupKey, GroupRequest, Sampling

CORES = 2


def write_weights(model: Path, file: Path) -> None:
    """The model's own weights as version 0, for engines to map."""
    policy = AutoModelForCausalLM.from_pretrained(model, dtype="float32")
    WeightSlots(file, policy, 2).write(0, policy.named_parameters())


def engine_spec(
    model: Path, weights: Path, *, threads: int, tile_groups: int, deterministic: bool = True
) -> EngineSpec:
    """An engine that reads version 0 from a file `write_weights` made."""
    return EngineSpec(str(model), weights, 2, threads, tile_groups, 0, deterministic, (0,))


class Real:
    """The laptop preset's own prompts, asked again under new claim numbers so that no draw repeats."""

    def __init__(self) -> None:
        self._config = load_config("laptop")
        self._prompts, _ = load_prompts(self._config)
        self._claims = count()

    def __call__(self, groups: int) -> list[GroupRequest]:
        rollout, made = self._config.rollout, []
        for claim in (next(self._claims) for _ in range(groups)):
            prompt = self._prompts[claim % len(self._prompts)]
            key = GroupKey(claim, claim // len(self._prompts), prompt.prompt_id)
            made.append(GroupRequest(key, prompt, rollout.group_size, Sampling(1.0, rollout.max_tokens), 0))
        return made


def bare(engine: TorchEngine, tile_groups: int, take: Callable[[], Sequence[GroupRequest]]) -> Callable[[], None]:
    """The engine in this process, tile after tile."""

    def work() -> None:
        requests = take()
        for start in range(0, len(requests), tile_groups):
            engine.generate(requests[start : start + tile_groups])

    return work


def pooled(pool: RolloutPool, events: RayEvents, take: Callable[[], Sequence[GroupRequest]]) -> Callable[[], None]:
    """The same through actors, until all groups are back."""

    def work() -> None:
        requests = take()
        pool.submit(requests)
        done = 0
        while done < len(requests):
            done += len(events.next("groups").groups)  # type: ignore[union-attr]

    return work


def measure_pool(weights: Path, smoke: bool) -> list[Paired]:
    """Both sides decode the laptop preset's step with the same number of threads and the same draws."""
    groups, tile, pairs = (4, 2, 2) if smoke else (16, 8, 7)
    results = []
    for engines, threads in ((1, CORES), (CORES, 1)):
        crew = Crew(
            "rollout engine",
            lambda place, threads=threads: ray.remote(num_cpus=threads)(TorchEngine).remote(  # type: ignore[misc]
                engine_spec(bundled(), weights, threads=threads, tile_groups=tile)
            ),
            engines,
        )
        events = RayEvents(120.0)
        ours, theirs = Real(), Real()
        local = TorchEngine(engine_spec(bundled(), weights, threads=CORES, tile_groups=tile))
        results.append(paired(
            f"rollout: bare engine, {CORES} threads / pool of {engines} x {threads}",
            bare(local, tile, lambda theirs=theirs: theirs(groups)),  # type: ignore[misc]
            pooled(RolloutPool(crew, tile, events), events, lambda ours=ours: ours(groups)),  # type: ignore[misc]
            pairs=pairs, goal=0.97, note=f"{groups} groups x 8, laptop preset",
        ))
        for actor in crew.actors:
            ray.kill(actor.handle)
    return results


def measure_grouping(weights: Path, smoke: bool) -> list[Paired]:
    """60-token prompts, 16 groups a call: forwarding each prompt once against once per completion."""
    groups, size, tokens, pairs = (2, 2, 4, 2) if smoke else (16, 8, 30, 5)
    grouped = TorchEngine(engine_spec(bundled(), weights, threads=CORES, tile_groups=groups))
    ungrouped = TorchEngine(engine_spec(bundled(), weights, threads=CORES, tile_groups=groups * size))
    calls = count()

    def ask(each: int) -> list[GroupRequest]:
        first = next(calls) * groups
        return [
            request(claim, prompt_tokens=60, max_tokens=tokens, group_size=each)
            for claim in range(first, first + groups)
            for _ in range(size // each)
        ]

    return [paired(
        f"rollout: prompt per completion / per group, G={size}, 60 + {tokens} tokens",
        lambda: ungrouped.generate(ask(1)), lambda: grouped.generate(ask(size)),
        pairs=pairs, goal=1.7, note=f"{groups} groups a call",
    )]


def measure_tiles(weights: Path, smoke: bool) -> list[Paired]:
    """What deterministic mode costs: finished rows stay in the tile."""
    groups, pairs = (2, 2) if smoke else (8, 7)
    fixed, shrinking = (
        TorchEngine(engine_spec(bundled(), weights, threads=CORES, tile_groups=groups, deterministic=deterministic))
        for deterministic in (True, False)
    )
    ours, theirs = Real(), Real()
    return [paired(
        "rollout: fixed tile / shrinking tile", lambda: fixed.generate(theirs(groups)),
        lambda: shrinking.generate(ours(groups)), pairs=pairs, note="above 1: what rollout.deterministic=false gains",
    )]


def measure(smoke: bool) -> list[Paired]:
    """Everything."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name, local_ray(CORES + 1):
        weights = Path(name) / "weights"
        write_weights(bundled(), weights)
        return measure_grouping(weights, smoke) + measure_tiles(weights, smoke) + measure_pool(weights, smoke)


if __name__ == "__main__":
    standard_main(__doc__, measure)
