"""Kills actors at random while a run goes on: whoever trusts a recovery has seen it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random

from actors.actor import Actor

MEAN_S = 15.0
"""Mean time between kills."""
JOIN_S = 10.0


@contextmanager
def killing(actors: Callable[[], list[Actor]], seed: int | None) -> Iterator[None]:
    """While the context lasts, a thread kills one of `actors()` now and then; with no seed, nobody."""
    if seed is None:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_kill_until, args=(over, actors, Random(seed)), name="chaos")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(JOIN_S)


def _kill_until(over: threading.Event, actors: Callable[[], list[Actor]], rng: Random) -> None:
    while not over.wait(rng.expovariate(1 / MEAN_S)):
        rng.choice(actors()).strike()
