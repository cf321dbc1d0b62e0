import asyncio
import random

import pytest

from rlhaiku.judge.pacing import Breaker, GaveUp, Pace, Throttled, Transient, backoff_s


class FakeClock:
    """Time passes only by sleeping, and the earliest sleeper wakes first."""

    def __init__(self):
        self.time, self._sleepers, self._count = 0.0, [], 0

    def now(self):
        return self.time

    async def sleep(self, seconds):
        future = asyncio.get_running_loop().create_future()
        self._count += 1
        self._sleepers.append((self.time + seconds, self._count, future))
        await future

    async def run(self, *coroutines):
        """Runs everything to its end; returns results and exceptions."""
        everything = asyncio.gather(*coroutines, return_exceptions=True)
        while not everything.done():
            for _ in range(20):
                await asyncio.sleep(0)
            if self._sleepers and not everything.done():
                self._sleepers.sort()
                self.time, _, future = self._sleepers.pop(0)
                future.set_result(None)
        return await everything


class Judge:
    """Fails until a moment."""

    def __init__(self, clock, up_at=0.0, error=None):
        self.clock, self.up_at, self.calls = clock, up_at, []
        self.error = error or Transient("down")

    async def __call__(self):
        self.calls.append(self.clock.now())
        if self.clock.now() < self.up_at:
            raise self.error
        return "fine"


def run(test):
    """Runs `test(clock, breaker)` with a breaker that opens at 3 failures, probes every 5 s, gives up at 60 s."""

    async def body():
        clock = FakeClock()
        await test(clock, Breaker(3, 5.0, 60.0, clock))

    asyncio.run(body())


async def open_it(breaker, judge):
    for _ in range(3):
        with pytest.raises(Transient):
            await breaker.call(judge)
    assert breaker.is_open and breaker.outages == 1


def test_it_opens_at_consecutive_failures_only():
    async def test(clock, breaker):
        good, bad = Judge(clock), Judge(clock, up_at=99)
        for judge in (bad, bad, good, bad, bad):
            await asyncio.gather(breaker.call(judge), return_exceptions=True)
        assert not breaker.is_open
        await asyncio.gather(breaker.call(bad), return_exceptions=True)
        assert breaker.is_open

    run(test)


def test_429_is_not_a_failure():
    async def test(clock, breaker):
        judge = Judge(clock, up_at=99, error=Throttled("later", 1.0))
        await clock.run(*(breaker.call(judge) for _ in range(9)))
        assert not breaker.is_open

    run(test)


def test_a_server_that_asks_for_patience_is_back():
    async def test(clock, breaker):
        await open_it(breaker, Judge(clock, up_at=99))
        [said] = await clock.run(breaker.call(Judge(clock, up_at=99, error=Throttled("later", 1.0))))
        assert isinstance(said, Throttled) and not breaker.is_open

    run(test)


def test_one_probe_at_a_time_then_everybody():
    async def test(clock, breaker):
        judge = Judge(clock, up_at=12.0)
        await open_it(breaker, judge)
        results = await clock.run(*(breaker.call(judge) for _ in range(8)))
        assert judge.calls[3:] == [5.0, 10.0] + [15.0] * 6
        assert [str(result) for result in results].count("fine") == 6
        assert not breaker.is_open and breaker.seconds_open == 15.0

    run(test)


def test_patience_ends_with_give_up_s_of_outage():
    async def test(clock, breaker):
        judge = Judge(clock, up_at=1e9)
        await open_it(breaker, judge)

        async def stubborn():
            while True:
                try:
                    return await breaker.call(judge)
                except Transient:
                    continue

        results = await clock.run(*(stubborn() for _ in range(5)))
        assert all(isinstance(result, GaveUp) and result.is_outage for result in results)
        assert 60.0 <= clock.now() <= 65.0

    run(test)


def test_a_lone_request_slower_than_the_probes_gives_up_too():
    async def test(clock, breaker):
        judge = Judge(clock, up_at=1e9)
        await open_it(breaker, judge)

        async def slow():
            for _ in range(20):
                try:
                    return await breaker.call(judge)
                except Transient:
                    await clock.sleep(6.0)

        [result] = await clock.run(slow())
        assert isinstance(result, GaveUp) and clock.now() <= 66.0

    run(test)


def test_after_giving_up_the_judge_is_still_probed():
    async def test(clock, breaker):
        judge = Judge(clock, up_at=100.0)
        await open_it(breaker, judge)
        clock.time = 90.0
        first, second = await clock.run(breaker.call(judge), breaker.call(judge))
        assert isinstance(first, GaveUp) and isinstance(second, GaveUp)
        assert judge.calls[3:] == [90.0]
        clock.time = 101.0
        assert await breaker.call(judge) == "fine"

    run(test)


def test_token_bucket():
    async def body():
        clock = FakeClock()
        pace, went = Pace(2.0, 60.0, clock), []

        async def one():
            await pace.turn()
            went.append(clock.now())

        await clock.run(*(one() for _ in range(6)))
        assert went == [0.0, 0.0, 0.5, 1.0, 1.5, 2.0]

    asyncio.run(body())


def test_a_pause_holds_everybody():
    async def body():
        clock = FakeClock()
        pace = Pace(0.0, 60.0, clock)
        pace.throttled(7.0)
        pace.throttled(3.0)
        await clock.run(pace.turn(), pace.turn())
        assert clock.now() == 7.0

    asyncio.run(body())


def test_a_spell_of_throttling_ends_with_an_answer_or_with_patience():
    async def body():
        clock = FakeClock()
        pace = Pace(0.0, 60.0, clock)
        assert not pace.is_waiting
        pace.throttled(50.0)
        pace.answered()
        assert pace.is_waiting, "a late answer to an earlier request says nothing about the pause"
        await clock.run(pace.turn())
        pace.throttled(3600.0)
        results = await clock.run(*(pace.turn() for _ in range(5)))
        assert all(isinstance(result, GaveUp) and result.is_outage for result in results)
        assert clock.now() == 60.0
        [late] = await clock.run(pace.turn())
        assert isinstance(late, GaveUp) and clock.now() == 60.0, "until the pause is over nobody waits any more"
        clock.time = 110.0
        await pace.turn()
        pace.answered()
        assert not pace.is_waiting

    asyncio.run(body())


def test_debts_of_the_token_bucket_are_waiting():
    async def body():
        clock = FakeClock()
        pace = Pace(0.5, 60.0, clock)
        await pace.turn()
        assert not pace.is_waiting
        waiting = asyncio.ensure_future(clock.run(pace.turn()))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert pace.is_waiting
        await waiting
        assert not pace.is_waiting

    asyncio.run(body())


def test_backoff_grows_jitters_and_is_bounded():
    rng = random.Random(0)
    assert all(0.25 <= backoff_s(1, rng) <= 0.5 for _ in range(100))
    assert len({backoff_s(1, rng) for _ in range(100)}) == 100
    assert all(15.0 <= backoff_s(tries, rng) <= 30.0 for tries in range(8, 2000))
