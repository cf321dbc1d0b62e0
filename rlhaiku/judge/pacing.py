"""When a request may go: the rate limit, the pause a server asks for, and the circuit breaker."""

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from typing import Literal, Protocol, TypeVar

T = TypeVar("T")
BreakerState = Literal["closed", "open"]
LONGEST_BACKOFF_S = 30.0


class Clock(Protocol):
    """Time, replaceable in tests."""

    def now(self) -> float:
        """Seconds on a clock that never goes back."""

    async def sleep(self, seconds: float) -> None:
        """Lets others run for so long."""


class RealClock:
    """The machine's monotonic clock."""

    def now(self) -> float:
        """Seconds since some moment."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """`asyncio.sleep`."""
        await asyncio.sleep(seconds)


class Transient(Exception):
    """A request failed in a way that another try may cure; `reason` holds no secret."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Throttled(Transient):
    """The server asks for patience (429, or Retry-After): it is alive, so this is no failure to the breaker."""

    def __init__(self, reason: str, retry_after_s: float = 0.0) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


class GaveUp(Exception):
    """No more tries; `is_outage` tells a judge that is down from a request that fails alone."""

    def __init__(self, reason: str, is_outage: bool) -> None:
        super().__init__(reason, is_outage)
        self.reason, self.is_outage = reason, is_outage


def backoff_s(tries: int, rng: random.Random) -> float:
    """Before try `tries` + 1: doubling from half a second to 30 s, with half of it random."""
    longest = min(LONGEST_BACKOFF_S, 0.5 * 2.0 ** min(tries - 1, 10))
    return longest * rng.uniform(0.5, 1.0)


class Pace:
    """A token bucket, and the pause that a throttling server asks of everybody.

    From the first request that is throttled until one is answered lasts a spell; once it has lasted `give_up_s`,
    whoever would have to wait longer gets GaveUp instead.
    """

    def __init__(self, requests_per_s: float, give_up_s: float, clock: Clock) -> None:
        self._rate, self._give_up_s, self._clock = requests_per_s, give_up_s, clock
        self._most = max(1.0, requests_per_s)
        self._tokens, self._filled_at = self._most, clock.now()
        self._not_before = clock.now()
        self._give_up_at = math.inf  # finite during a spell

    @property
    def is_waiting(self) -> bool:
        """Whether a spell lasts, or somebody waits for a token."""
        tokens = self._tokens + (self._clock.now() - self._filled_at) * self._rate
        return self._give_up_at < math.inf or tokens < 0

    def throttled(self, retry_after_s: float) -> None:
        """Nobody goes for so long, or for `give_up_s` if that is less; raises GaveUp at the end of patience."""
        now = self._clock.now()
        self._give_up_at = min(self._give_up_at, now + self._give_up_s)
        self._not_before = max(self._not_before, now + min(retry_after_s, self._give_up_s))
        self._check_patience()

    def answered(self) -> None:
        """Ends a spell, unless this is the late answer to a request that was sent before its pause."""
        if self._clock.now() >= self._not_before:
            self._give_up_at = math.inf

    async def turn(self) -> None:
        """Waits for one token and for the end of the pause; raises GaveUp at the end of patience."""
        while (now := self._clock.now()) < self._not_before:
            self._check_patience()
            await self._clock.sleep(min(self._not_before, self._give_up_at) - now)
        if not self._rate:
            return
        now = self._clock.now()
        self._tokens = min(self._most, self._tokens + (now - self._filled_at) * self._rate) - 1
        self._filled_at = now
        if self._tokens < 0:  # a debt: whoever comes next waits longer, so the order is kept
            await self._clock.sleep(-self._tokens / self._rate)

    def _check_patience(self) -> None:
        late_s = self._clock.now() - self._give_up_at
        if late_s >= 0:
            raise GaveUp(f"throttled for {self._give_up_s + late_s:.0f} s", is_outage=True)


class Breaker:
    """Circuit breaker: after N failures in a row everybody waits, and one request at a time probes.

    Waiting requests queue in order and go on at the first success of anyone. Once an outage has lasted
    `give_up_s`, those that need not probe get GaveUp at once, also new ones, until a probe succeeds.
    """

    def __init__(self, failures: int, probe_interval_s: float, give_up_s: float, clock: Clock) -> None:
        self._most, self._interval_s, self._give_up_s, self._clock = failures, probe_interval_s, give_up_s, clock
        self._failures = 0
        self._opened_at, self._probe_at = 0.0, 0.0
        self._past_s = 0.0
        self._probing = asyncio.Lock()
        self.is_open = False
        self.outages = 0

    @property
    def seconds_open(self) -> float:
        """Over all outages, the present one included: how long deadline clocks should have stood still."""
        return self._past_s + (self._clock.now() - self._opened_at if self.is_open else 0.0)

    async def call(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Runs `attempt` as soon as the breaker lets it; raises what it raises, or GaveUp."""
        while self.is_open:
            async with self._probing:
                await self._until_probe()
                if self.is_open:
                    return await self._counted(attempt)
        return await self._counted(attempt)

    async def _until_probe(self) -> None:
        """Waits for the next probe, the end of the outage or the end of patience."""
        give_up_at = self._opened_at + self._give_up_s
        while self.is_open and (now := self._clock.now()) < self._probe_at:
            self._check_patience()
            await self._clock.sleep(min(self._probe_at, give_up_at) - now)

    def _check_patience(self) -> None:
        lasted_s = self._clock.now() - self._opened_at
        if self.is_open and lasted_s >= self._give_up_s:
            raise GaveUp(f"the judge has been down for {lasted_s:.0f} s", is_outage=True)

    async def _counted(self, attempt: Callable[[], Awaitable[T]]) -> T:
        try:
            result = await attempt()
        except Throttled:
            self._succeeded()
            raise
        except Transient:
            self._failed()
            self._check_patience()
            raise
        self._succeeded()
        return result

    def _succeeded(self) -> None:
        self._past_s, self.is_open, self._failures = self.seconds_open, False, 0

    def _failed(self) -> None:
        self._failures += 1
        self._probe_at = self._clock.now() + self._interval_s
        if self._failures >= self._most and not self.is_open:
            self.is_open, self._opened_at = True, self._clock.now()
            self.outages += 1
