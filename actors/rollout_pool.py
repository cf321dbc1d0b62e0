"""Rollout engines as one: requests are cut into tiles, and the next idle engine takes the next tile."""

from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

from actors.waiting import RayEvents
from rlhaiku.events import GroupsGenerated, RoleEvent
from rlhaiku.types import Group, GroupRequest

CALLS_IN_FLIGHT = 2
"""Per engine: one being decoded and one waiting, so that an engine never idles for the driver."""


class RolloutPool:
    """The Rollouts of a run. Which engine takes a tile changes nothing: a tile's draws depend on its requests alone."""

    def __init__(self, engines: Sequence[Any], tile_groups: int, events: RayEvents) -> None:
        """`engines`: Ray handles of actors with `generate(requests) -> list[Group]`."""
        self._engines, self._tile_groups, self._events = engines, tile_groups, events
        self._tiles: deque[tuple[GroupRequest, ...]] = deque()
        self._in_flight = [0] * len(engines)

    def submit(self, requests: Sequence[GroupRequest]) -> None:
        """Queues requests of one sampling and weight version; tiles follow their order."""
        size = self._tile_groups
        self._tiles.extend(tuple(requests[start : start + size]) for start in range(0, len(requests), size))
        self._dispatch()

    def _dispatch(self) -> None:
        while self._tiles and min(self._in_flight) < CALLS_IN_FLIGHT:
            index = self._in_flight.index(min(self._in_flight))
            tile = self._tiles.popleft()
            self._in_flight[index] += 1
            ref = self._engines[index].generate.remote(tile)
            self._events.expect(ref, f"rollout engine {index}", partial(self._finish, index))

    def _finish(self, index: int, groups: list[Group]) -> RoleEvent:
        self._in_flight[index] -= 1
        self._dispatch()
        return GroupsGenerated(tuple(groups))
