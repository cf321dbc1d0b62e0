"""Actors of one kind that can replace each other."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import ray
from ray.exceptions import RayError

from actors.actor import Actor
from rlhaiku.errors import ActorDied, CrashLoop

MAX_DEATHS = 3
"""In a row at one place: what killed these will kill the next one too."""


class CrewWatcher(Protocol):
    """Is told what happens to actors, e.g. to tell a person."""

    def died(self, name: str, why: str) -> None:
        """An actor died and is being replaced; `why`: a report if it was killed for not answering, else empty."""

    def recovered(self, name: str, seconds: float, up_s: float) -> None:
        """Its successor finished its first work so long after the death was noticed, `up_s` of them after its start."""


class Unwatched:
    """A CrewWatcher that tells nobody."""

    def died(self, name: str, why: str) -> None:
        """Nothing."""

    def recovered(self, name: str, seconds: float, up_s: float) -> None:
        """Nothing."""


class Crew:
    """Actors by place; a dead one's place is filled again at once."""

    def __init__(self, who: str, spawn: Callable[[int], Any], size: int, watcher: CrewWatcher | None = None) -> None:
        """`who`: what one is called, e.g. `rollout engine`; `spawn(place)` starts one and returns its Ray handle."""
        self._who, self._spawn, self._watcher = who, spawn, watcher or Unwatched()
        self.actors = [self._start(place) for place in range(size)]
        self._deaths = [0] * size
        self._died_s: list[float | None] = [None] * size

    def __len__(self) -> int:
        return len(self.actors)

    def worked(self, place: int) -> None:
        """An actor finished something: its deaths so far were not a loop."""
        self._deaths[place] = 0
        died_s = self._died_s[place]
        if died_s is not None:
            self._died_s[place] = None
            actor, seconds = self.actors[place], time.monotonic() - died_s
            process = actor.process()
            up_s = time.time() - process.up_at if process else seconds
            self._watcher.recovered(actor.name, seconds, min(seconds, max(0.0, up_s)))

    def replace(self, dead: Actor, death: ActorDied) -> None:
        """Starts another in a dead one's place, unless that has happened; raises CrashLoop when deaths repeat."""
        if dead not in self.actors:
            return
        place = self.actors.index(dead)
        self._deaths[place] += 1
        if self._deaths[place] >= MAX_DEATHS:
            raise CrashLoop(f"{dead.name} must not die {MAX_DEATHS} times in a row; the last time: {death}") from death
        if self._died_s[place] is None:
            self._died_s[place] = time.monotonic()
        self._watcher.died(str(dead), dead.killed_because)
        with suppress(RayError):
            ray.kill(dead.handle)  # if only its connection was lost, it must not work beside its successor
        self.actors[place] = self._start(place)
        self.actors[place].is_successor = True

    def _start(self, place: int) -> Actor:
        return Actor(f"{self._who} {place}", self._spawn(place))
