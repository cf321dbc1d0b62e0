"""Reward workers as one: a free worker takes its share of whatever waits, and a dead one is replaced."""

from collections import deque
from collections.abc import Sequence
from functools import partial
from itertools import islice
from typing import TypeVar

from actors.actor import Actor
from actors.crew import Crew
from actors.reward_worker import INLINE_BELOW, RewardTable, RewardWorker, merge_stats
from actors.waiting import RayEvents, wait_for
from rlhaiku.errors import ActorDied, ActorFailed, WaitTimeout
from rlhaiku.events import GroupsScored, RoleEvent
from rlhaiku.types import Group, Reward, ScoredGroup

MAX_POEMS = 512
"""Per call: large enough that the call costs nothing, small enough that several workers share a step."""
JUDGED_CALLS = 8
"""At once for a worker that mostly waits for the judge."""
STATUS_TIMEOUT_S = 10.0

T = TypeVar("T")


class RewardPool:
    """The Rewards of a run."""

    def __init__(
        self, workers: Crew, events: RayEvents, has_judge: bool = False, inline: RewardWorker | None = None,
        inline_below: int = INLINE_BELOW,
    ) -> None:  # fmt: skip
        """`workers`: `RewardWorker` actors.

        Workers with a judge take several calls at once, since they mostly wait. With `inline`, submissions of
        fewer than `inline_below` poems are scored in this process: a Ray call would take longer.
        """
        self._workers, self._events = workers, events
        self._has_judge, self._inline, self._inline_below = has_judge, inline, inline_below
        self._calls_per_worker = JUDGED_CALLS if has_judge else 1
        self._waiting: deque[Group] = deque()
        self._in_flight = [0] * len(workers)
        events.pause_while(self.is_paused, lambda: self._workers.actors, self._signs)

    def submit(self, groups: Sequence[Group]) -> None:
        """Queues groups to score."""
        if self._inline and _num_poems(groups) < self._inline_below:
            poems = [(group.prompt, completion.text) for group in groups for completion in group.completions]
            self._events.deliver(_scored(groups, self._inline.rewards_now(poems)))
            return
        self._waiting.extend(groups)
        self._dispatch()

    def stats(self) -> dict[str, float]:
        """The judge's counters over all workers, as `judge/...`; empty without a judge."""
        if not self._has_judge:
            return {}
        nothing: dict[str, float] = {}
        snapshots = [_ask(worker, "stats", nothing) for worker in self._workers.actors]
        return {f"judge/{name}": value for name, value in merge_stats(snapshots).items()}

    def is_paused(self) -> bool:
        """Whether a worker waits for what has a deadline of its own, e.g. a judge; the workers' clocks then stop."""
        return any(_ask(worker, "is_paused", False) for worker in self._workers.actors)

    def _signs(self) -> int:
        """How much workers have done inside their calls."""
        return sum(_ask(worker, "signs", 0) for worker in self._workers.actors)

    def _dispatch(self) -> None:
        while self._waiting and min(self._in_flight) < self._calls_per_worker:
            idle = sum(count < self._calls_per_worker for count in self._in_flight)
            share = -(-_num_poems(self._waiting) // idle)
            self._call(self._in_flight.index(min(self._in_flight)), self._take(min(share, MAX_POEMS)))

    def _take(self, num_poems: int) -> tuple[Group, ...]:
        """The next waiting groups, at least one, up to a number of poems."""
        groups = [self._waiting.popleft()]
        while self._waiting and _num_poems(groups) + len(self._waiting[0].completions) <= num_poems:
            groups.append(self._waiting.popleft())
        return tuple(groups)

    def _call(self, place: int, groups: tuple[Group, ...]) -> None:
        self._in_flight[place] += 1
        worker = self._workers.actors[place]
        texts = [(group.prompt, tuple([c.text for c in group.completions])) for group in groups]
        self._events.expect(
            worker.handle.score.remote(texts),
            worker,
            f"{_num_poems(groups)} poems from claim {groups[0].key.claim} on",
            then=partial(self._finish, place, groups),
            on_death=partial(self._requeue, place, worker, groups),
        )

    def _finish(self, place: int, groups: tuple[Group, ...], table: RewardTable) -> RoleEvent:
        self._in_flight[place] -= 1
        self._workers.worked(place)
        self._dispatch()
        return _scored(groups, table.rewards())

    def _requeue(self, place: int, worker: Actor, groups: tuple[Group, ...], death: ActorDied) -> None:
        self._in_flight[place] -= 1
        self._waiting.extendleft(reversed(groups))
        self._workers.replace(worker, death)
        self._dispatch()


def _num_poems(groups: Sequence[Group] | deque[Group]) -> int:
    return sum(len(group.completions) for group in groups)


def _scored(groups: Sequence[Group], rewards: Sequence[Reward]) -> GroupsScored:
    """Groups with their rewards, which come in one row for all."""
    left = iter(rewards)
    return GroupsScored(tuple([ScoredGroup(group, tuple(islice(left, len(group.completions)))) for group in groups]))


def _ask(worker: Actor, question: str, otherwise: T) -> T:
    """A worker's answer; if it cannot even answer that, `otherwise`: its calls will tell what has become of it."""
    try:
        answer: T = wait_for(getattr(worker.handle, question).remote(), STATUS_TIMEOUT_S, worker.name)
    except (WaitTimeout, ActorFailed):
        return otherwise
    return answer
