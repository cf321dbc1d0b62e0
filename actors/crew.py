"""Actors of one kind that can replace each other."""

from collections.abc import Callable
from typing import Any

from rlhaiku.errors import ActorDied

MAX_DEATHS = 3
"""In a row at one place: what killed these will kill the next one too."""


class Crew:
    """Ray handles by place; a dead actor's place is filled again at once."""

    def __init__(self, who: str, spawn: Callable[[int], Any], size: int) -> None:
        """`who`: what one is called, e.g. `rollout engine`; `spawn(place)` starts one and returns its handle."""
        self._who, self._spawn = who, spawn
        self.handles = [spawn(place) for place in range(size)]
        self.replaced = 0
        self._deaths = [0] * size

    def __len__(self) -> int:
        return len(self.handles)

    def name(self, place: int) -> str:
        """What to call an actor in an error."""
        return f"{self._who} {place}"

    def worked(self, place: int) -> None:
        """An actor finished something: its deaths so far were not a loop."""
        self._deaths[place] = 0

    def replace(self, place: int, dead: Any, death: ActorDied) -> None:  # noqa: ANN401  (a Ray handle)
        """Starts another in a dead one's place, unless that has happened; raises `death` when deaths repeat."""
        if self.handles[place] is not dead:
            return
        self._deaths[place] += 1
        if self._deaths[place] >= MAX_DEATHS:
            raise death
        self.handles[place] = self._spawn(place)
        self.replaced += 1
