"""Rollout engines as one: requests are cut into tiles, and the next idle engine takes the next tile."""

from collections import deque
from collections.abc import Sequence
from functools import partial

from actors.actor import Actor
from actors.crew import Crew
from actors.waiting import RayEvents
from rlhaiku.errors import ActorDied
from rlhaiku.events import GroupsGenerated, RoleEvent
from rlhaiku.types import Group, GroupRequest

CALLS_IN_FLIGHT = 2
"""Per engine: one being decoded and one waiting, so that an engine never idles for the driver."""

Tile = tuple[GroupRequest, ...]


class RolloutPool:
    """The Rollouts of a run.

    Which engine takes a tile changes nothing, since a tile's draws depend on its requests alone: a dead engine's tiles
    are simply drawn again by whoever is free.
    """

    def __init__(self, engines: Crew, tile_groups: int, events: RayEvents) -> None:
        """`engines`: actors with `generate(requests) -> list[Group]`."""
        self._engines, self._tile_groups, self._events = engines, tile_groups, events
        self._tiles: deque[Tile] = deque()
        self._in_flight = [0] * len(engines)

    def submit(self, requests: Sequence[GroupRequest]) -> None:
        """Queues requests of one sampling and weight version; tiles follow their order."""
        size = self._tile_groups
        self._tiles.extend(tuple(requests[start : start + size]) for start in range(0, len(requests), size))
        self._dispatch()

    def _dispatch(self) -> None:
        while self._tiles and min(self._in_flight) < CALLS_IN_FLIGHT:
            place = self._in_flight.index(min(self._in_flight))
            tile, engine = self._tiles.popleft(), self._engines.actors[place]
            self._in_flight[place] += 1
            self._events.expect(
                engine.handle.generate.remote(tile),
                engine,
                f"{len(tile)} groups from claim {tile[0].key.claim} on, with weight version {tile[0].weight_version}",
                then=partial(self._finish, place),
                on_death=partial(self._requeue, place, engine, tile),
            )

    def _finish(self, place: int, groups: list[Group]) -> RoleEvent:
        self._in_flight[place] -= 1
        self._engines.worked(place)
        self._dispatch()
        return GroupsGenerated(tuple(groups))

    def _requeue(self, place: int, engine: Actor, tile: Tile, death: ActorDied) -> None:
        self._in_flight[place] -= 1
        self._tiles.appendleft(tile)
        self._engines.replace(engine, death)
        self._dispatch()
