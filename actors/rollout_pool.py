"""Rollout engines as one: requests are cut into tiles, and the next idle engine takes the next tile."""

from collections import deque
from collections.abc import Callable, Sequence
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
        self._renew: Callable[[], None] | None = None
        self._starting: set[int] = set()
        """Places of engines that hold no weights of this run yet, and get no tile."""
        self._arrived: set[int] = set()
        """Those of them that are up."""

    def submit(self, requests: Sequence[GroupRequest]) -> None:
        """Queues requests of one sampling and weight version; tiles follow their order."""
        size = self._tile_groups
        self._tiles.extend(tuple(requests[start : start + size]) for start in range(0, len(requests), size))
        self._dispatch()

    def hold_successors(self, renew: Callable[[], None]) -> None:
        """From now on an engine that replaces another gets work only after `renew` gave it the current weights.

        `renew` is called while nothing is in flight: an update of SGLang's weights aborts whatever is.
        """
        self._renew = renew

    def drain(self) -> None:
        """Returns when nothing is in flight or waits; what was finished meanwhile is reported as always."""
        self._events.settle_while(lambda: bool(self._tiles) or any(self._in_flight), "rollouts before a weight sync")

    def _dispatch(self) -> None:
        if self._arrived and not any(self._in_flight):
            self._admit()
        while self._tiles and (place := self._free_place()) is not None:
            tile, engine = self._tiles.popleft(), self._engines.actors[place]
            self._in_flight[place] += 1
            self._events.expect(
                engine.handle.generate.remote(tile),
                engine,
                f"{len(tile)} groups from claim {tile[0].key.claim} on, with weight version {tile[0].weight_version}",
                then=partial(self._finish, place),
                on_death=partial(self._requeue, place, engine, tile),
            )

    def _free_place(self) -> int | None:
        """The engine with the least work, if it can take more; none while somebody waits for all to be idle."""
        able = [place for place in range(len(self._in_flight)) if place not in self._starting]
        least = min(able, key=self._in_flight.__getitem__, default=None)
        full = least is None or self._in_flight[least] >= CALLS_IN_FLIGHT
        return None if full or self._arrived else least

    def _finish(self, place: int, groups: list[Group]) -> RoleEvent:
        self._in_flight[place] -= 1
        self._engines.worked(place)
        self._dispatch()
        return GroupsGenerated(tuple(groups))

    def _requeue(self, place: int, engine: Actor, tile: Tile, death: ActorDied) -> None:
        self._in_flight[place] -= 1
        self._tiles.appendleft(tile)
        self._replace(place, engine, death)
        self._dispatch()

    def _replace(self, place: int, engine: Actor, death: ActorDied) -> None:
        self._engines.replace(engine, death)
        successor = self._engines.actors[place]
        if self._renew is None or place in self._starting:
            return
        self._starting.add(place)
        self._events.expect(
            successor.handle.__ray_ready__.remote(),
            successor,
            "its start",
            then=partial(self._arrive, place),
            on_death=partial(self._die_young, place, successor),
        )

    def _arrive(self, place: int, _: object) -> None:
        self._arrived.add(place)
        self._dispatch()

    def _die_young(self, place: int, engine: Actor, death: ActorDied) -> None:
        self._starting.discard(place)
        self._replace(place, engine, death)

    def _admit(self) -> None:
        assert self._renew is not None
        self._renew()
        self._starting -= self._arrived
        self._arrived.clear()
