"""Tokens per second of rollouts: the pool against its engine driven bare, grouped prompts against ungrouped, fixed
tiles against shrinking ones.

    python -m benchmarks.rollout_throughput [--smoke] [--output FILE] [--force]
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import NamedTuple, Self

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
from rlhaiku.types import Group, GroupKey, GroupRequest, Sampling

CORES = 2
SAME_WORK = 0.02
"""Largest relative difference in tokens between sides whose draws are not the same to the last bit."""


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


Take = Callable[[], Sequence[GroupRequest]]


class Drawn(NamedTuple):
    """How much a call drew; a tile decodes until its longest completion ends."""

    tokens: int
    longest: int

    @classmethod
    def of(cls, groups: Sequence[Group]) -> Self:
        """Counts the completions' tokens."""
        lengths = [len(completion.token_ids) for group in groups for completion in group.completions]
        return cls(sum(lengths), max(lengths))


def bare(engine: TorchEngine, tile_groups: int, take: Take, drawn: list[Drawn]) -> Callable[[], None]:
    """The engine in this process, tile after tile; `drawn` is told of each call."""

    def work() -> None:
        requests = take()
        groups: list[Group] = []
        for start in range(0, len(requests), tile_groups):
            groups += engine.generate(requests[start : start + tile_groups])
        drawn.append(Drawn.of(groups))

    return work


def pooled(pool: RolloutPool, events: RayEvents, take: Take, drawn: list[Drawn]) -> Callable[[], None]:
    """The same through actors, until all groups are back."""

    def work() -> None:
        requests = take()
        pool.submit(requests)
        groups: list[Group] = []
        while len(groups) < len(requests):
            groups += events.next("groups").groups  # type: ignore[union-attr]
        drawn.append(Drawn.of(groups))

    return work


def tokens(drawn: Sequence[Drawn]) -> int:
    """Of all calls."""
    return sum(each.tokens for each in drawn)


def check_draws(drawn: tuple[list[Drawn], list[Drawn]], is_exact: bool) -> None:
    """Both sides were asked the same; another number of threads rounds otherwise, which moves a draw now and then."""
    bare_tokens, pool_tokens = map(tokens, drawn)
    assert drawn[0] == drawn[1] if is_exact else abs(bare_tokens - pool_tokens) <= SAME_WORK * bare_tokens, \
        f"the same requests must be the same work; got {bare_tokens} and {pool_tokens} tokens"


def measure_pool(weights: Path, smoke: bool) -> Iterator[Paired]:
    """Both sides decode the laptop preset's steps with the same number of threads in all."""
    groups, tile, pairs = (4, 2, 2) if smoke else (16, 8, 7)
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
        drawn: tuple[list[Drawn], list[Drawn]] = ([], [])
        local = TorchEngine(engine_spec(bundled(), weights, threads=CORES, tile_groups=tile))
        result = paired(
            f"rollout: bare engine, {CORES} threads / pool of {engines} x {threads}",
            bare(local, tile, lambda theirs=theirs: theirs(groups), drawn[0]),  # type: ignore[misc]
            pooled(RolloutPool(crew, tile, events), events,
                   lambda ours=ours: ours(groups), drawn[1]),  # type: ignore[misc]
            pairs=pairs, goal=0.97,
        )
        check_draws(drawn, is_exact=threads == CORES)
        yield replace(result, note=f"{groups} groups x 8, laptop preset; "
                                   f"{tokens(drawn[0])} and {tokens(drawn[1])} tokens")
        for actor in crew.actors:
            ray.kill(actor.handle)


def measure_grouping(weights: Path, smoke: bool) -> Iterator[Paired]:
    """60-token prompts, 16 groups a call: forwarding each prompt once against once per completion."""
    groups, size, max_tokens, pairs = (2, 2, 4, 2) if smoke else (16, 8, 30, 7)
    grouped = TorchEngine(engine_spec(bundled(), weights, threads=CORES, tile_groups=groups))
    ungrouped = TorchEngine(engine_spec(bundled(), weights, threads=CORES, tile_groups=groups * size))

    def asking(each: int, calls: count) -> Take:  # type: ignore[type-arg]
        def take() -> list[GroupRequest]:
            first = next(calls) * groups
            return [
                request(claim, prompt_tokens=60, max_tokens=max_tokens, group_size=each)
                for claim in range(first, first + groups)
                for _ in range(size // each)
            ]

        return take

    drawn: tuple[list[Drawn], list[Drawn]] = ([], [])
    result = paired(
        f"rollout: prompt per completion / per group, G={size}, 60 + {max_tokens} tokens",
        bare(ungrouped, groups * size, asking(1, count()), drawn[0]),
        bare(grouped, groups, asking(size, count()), drawn[1]), pairs=pairs, goal=1.7,
    )
    steps = {each.longest for side in drawn for each in side}
    assert steps == {max_tokens}, f"both sides must decode {max_tokens} tokens a tile; got {steps}"
    yield replace(result, note=f"{groups} groups a call; {max_tokens} decode steps on both sides, "
                               f"{tokens(drawn[0])} and {tokens(drawn[1])} tokens until the ends")


def measure_tiles(weights: Path, smoke: bool) -> Iterator[Paired]:
    """What deterministic mode costs: finished rows stay in the tile."""
    groups, pairs = (2, 2) if smoke else (8, 7)
    fixed, shrinking = (
        TorchEngine(engine_spec(bundled(), weights, threads=CORES, tile_groups=groups, deterministic=deterministic))
        for deterministic in (True, False)
    )
    ours, theirs = Real(), Real()
    drawn: tuple[list[Drawn], list[Drawn]] = ([], [])
    result = paired(
        "rollout: fixed tile / shrinking tile", bare(fixed, groups, lambda: theirs(groups), drawn[0]),
        bare(shrinking, groups, lambda: ours(groups), drawn[1]), pairs=pairs,
    )
    yield replace(result, note="above 1: what rollout.deterministic=false gains; the same requests, "
                               f"{tokens(drawn[0])} and {tokens(drawn[1])} tokens")


def measure(smoke: bool) -> Iterator[Paired]:
    """Everything."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name, local_ray(CORES + 1):
        weights = Path(name) / "weights"
        write_weights(bundled(), weights)
        for part in (measure_grouping, measure_tiles, measure_pool):
            yield from part(weights, smoke)


if __name__ == "__main__":
    standard_main(__doc__, measure)
