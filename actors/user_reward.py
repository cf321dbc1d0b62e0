"""A user's reward function, which may do anything: raise, return nonsense, be a coroutine, or never return."""

import asyncio
import inspect
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import isfinite
from queue import Empty, SimpleQueue

from rlhaiku.errors import RunFailed
from rlhaiku.types import Prompt, Reward, Scored, Unscored

Poem = tuple[Prompt, str]
"""What a reward function is given: the prompt, and the text of one completion."""
Function = Callable[[Prompt, str], object]
HANGS_IN_A_ROW, HANGS_IN_A_CALL = 3, 8
"""Poems on which a function may hang: more, and it is the function, not the poem."""
IDLE_S = 60.0
"""How often a thread without work looks whether it is still wanted."""
CONCURRENT = 64
"""Coroutines of a function that are awaited at once."""


class UserReward:
    """Calls a function in a thread of its own, with a deadline for each poem, and awaits what it returns if need be.

    A thread cannot be ended from outside: one that hangs is left behind, and another goes on with the next poem. What
    no thread helps against is C code that hangs while it holds the GIL, or a coroutine that blocks its event loop.
    """

    def __init__(self, function: Function, timeout_s: float) -> None:
        """`timeout_s`: longest time for one poem; a hang is noticed within twice that."""
        self._function, self._timeout_s = function, timeout_s
        self._turn = asyncio.Lock()
        self._thread: _Thread | None = None
        self.finished = 0
        """Calls that have returned or raised so far: what grows does not hang."""
        self.left_behind = 0
        """Threads left behind so far; each may still take memory and time."""

    async def score(self, poems: Sequence[Poem]) -> list[Reward]:
        """The reward of each poem, in order; Unscored where the function failed or took too long.

        Raises RunFailed if it hangs on several poems in a row, or on many.
        """
        async with self._turn:
            values = await self._values(poems)
        slots = asyncio.Semaphore(CONCURRENT)
        return list(await asyncio.gather(*(self._settled(value, slots) for value in values)))

    async def _values(self, poems: Sequence[Poem]) -> list[object]:
        """What the function returned for each poem, or an Unscored."""
        values: list[object] = []
        in_a_row = hangs = 0
        while True:
            done = await self._call(poems[len(values) :])
            values += done
            if len(values) == len(poems):
                return values
            in_a_row, hangs = 1 if done else in_a_row + 1, hangs + 1
            if in_a_row == HANGS_IN_A_ROW or hangs == HANGS_IN_A_CALL:
                raise RunFailed(
                    f"A reward function must return within reward.timeout_s={self._timeout_s:g} s; {self._function!r} "
                    f"did not for {in_a_row} poems in a row, and {hangs} of {len(values) + 1} in all. "
                    "Give what it waits for a timeout, or raise reward.timeout_s."
                )
            values.append(self._late())

    async def _call(self, poems: Sequence[Poem]) -> list[object]:
        """What the function returned for the first poems: all of them, or those before the one that it hangs on."""
        done: list[object] = []
        thread = self._thread = self._thread or _Thread()
        finished = thread.work(self._counted, poems, done)
        while not finished.done():
            seen = len(done)
            await asyncio.wait([finished], timeout=self._timeout_s)
            if not finished.done() and len(done) == seen:
                thread.leave_behind()
                self._thread = None
                self.left_behind += 1
                return done[:seen]
        return done

    def _counted(self, *poem: object) -> object:
        try:
            return self._function(*poem)  # type: ignore[arg-type]
        finally:
            self.finished += 1

    async def _settled(self, value: object, slots: asyncio.Semaphore) -> Reward:
        """A reward of what the function returned, awaited if it is to be."""
        if not inspect.isawaitable(value):
            return as_reward(value)
        try:
            async with slots, asyncio.timeout(self._timeout_s) as deadline:
                return as_reward(await value)
        except Exception as error:  # a user's coroutine may raise anything
            return self._late() if deadline.expired() else failed(error)

    def _late(self) -> Unscored:
        return Unscored(f"the reward function took longer than {self._timeout_s:g} s (reward.timeout_s)")


class _Thread:
    """A thread that does one piece of work after the other; always the same one, as some libraries want it."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._is_left_behind = False
        threading.Thread(target=self._run, name="reward function", daemon=True).start()

    def work(self, function: Function, poems: Sequence[Poem], done: list[object]) -> "asyncio.Future[None]":
        """Appends to `done` what `function` returns for each poem, or an Unscored; the future tells the end."""
        loop = asyncio.get_running_loop()
        finished = loop.create_future()

        def job() -> None:
            for poem in poems:
                value = call(function, poem)
                if self._is_left_behind:
                    return
                done.append(value)
            loop.call_soon_threadsafe(finished.set_result, None)

        self._queue.put(job)
        return finished

    def leave_behind(self) -> None:
        """Ends the thread after the call that it is in, should that ever return."""
        self._is_left_behind = True

    def _run(self) -> None:
        while not self._is_left_behind:
            with suppress(Empty):
                self._queue.get(timeout=IDLE_S)()


def call(function: Function, poem: Poem) -> object:
    """What the function returns for a poem, or an Unscored if it raises."""
    try:
        return function(*poem)
    except (Exception, SystemExit) as error:  # a user's function may raise anything; it is counted in reward/unscored
        return failed(error)


def as_reward(value: object) -> Reward:
    """A reward of what a function returned; Unscored unless it is one, or a finite number."""
    try:
        if isinstance(value, str | bytes):
            raise TypeError(f"a reward must be a number, Scored or Unscored; got {value!r:.80}")
        reward = value if isinstance(value, (Scored, Unscored)) else Scored(float(value))  # type: ignore[arg-type]
        if isinstance(reward, Unscored) or all(map(isfinite, (reward.total, *reward.components.values()))):
            return reward
        return Unscored(f"a reward must be finite, and so must its components; got {reward}")
    except Exception as error:
        return failed(error)


def failed(error: BaseException) -> Unscored:
    """The reward of a poem over which something was raised."""
    return Unscored(f"{type(error).__name__}: {error}")
