"""Reward workers as one."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

from actors.waiting import RayEvents
from rlhaiku.events import GroupsScored
from rlhaiku.types import Group


class RewardPool:
    """The Rewards of a run: each submission goes to the next worker in one call."""

    def __init__(self, workers: Sequence[Any], events: RayEvents) -> None:
        """`workers`: Ray handles of `RewardWorker` actors."""
        self._workers = cycle(enumerate(workers))
        self._events = events

    def submit(self, groups: Sequence[Group]) -> None:
        """Queues groups to score."""
        index, worker = next(self._workers)
        ref = worker.score.remote(groups)
        self._events.expect(ref, f"reward worker {index}", lambda scored: GroupsScored(tuple(scored)))
