"""The judge client: poems in, `Judged` or `Unjudged` out, whatever the network does in between."""

import asyncio
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Self

from rlhaiku.errors import RunFailed
from rlhaiku.judge.asking import Asker
from rlhaiku.judge.cache import JudgeCache, cache_key
from rlhaiku.judge.pacing import Clock, GaveUp, RealClock
from rlhaiku.judge.parsing import Judged, Judgement, Unjudged
from rlhaiku.judge.rubric import HaikuRubric, Nonces, PoemToJudge, Rubric
from rlhaiku.judge.settings import JudgeSettings
from rlhaiku.judge.stats import Counters, JudgeStats
from rlhaiku.judge.transport import HttpTransport, Transport


@dataclass(frozen=True, slots=True)
class _Flight:
    """A poem on its way; everybody who wants its judgement waits for the same future."""

    key: str
    poem: PoemToJudge
    answer: "asyncio.Future[Judgement]"


class JudgeClient:
    """Judges poems over one connection pool; belongs to one event loop.

    Use it as `async with JudgeClient(settings) as judge`, or call `close`. A caller that is cancelled leaves its
    poems to finish in the background, for the cache and for others who wait for them.
    """

    def __init__(
        self,
        settings: JudgeSettings,
        rubric: Rubric | None = None,
        *,
        transport: Transport | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._settings = settings
        self._rubric = HaikuRubric() if rubric is None else rubric
        self._batch_size = min(settings.poems_per_request, self._rubric.max_poems)
        self._transport = transport or HttpTransport(settings)
        self._counters = Counters()
        self._asker = Asker(settings, self._transport, clock or RealClock(), self._counters)
        self._nonces = Nonces(settings.nonce_seed)
        self._cache = JudgeCache(settings.cache_path) if settings.cache_path else None
        self._in_flight: dict[str, asyncio.Future[Judgement]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def judge(self, poems: Sequence[PoemToJudge]) -> list[Judgement]:
        """One judgement for each poem, in order.

        Waits out failures and outages; raises JudgeRefused when the server rejects the requests themselves.
        """
        if self._closed:
            raise RunFailed("A closed judge client was asked for judgements. Make a new one.")
        keys = [self._key(poem) for poem in poems]
        known = self._cached({key for key in keys if key not in self._in_flight})
        waiting = self._take_off(keys, poems, known)
        if waiting:
            await asyncio.wait(waiting.values())  # unlike gather, it leaves the futures of others alone
        answers = known | {key: future.result() for key, future in waiting.items()}
        judgements = [answers[key] for key in keys]
        judged = sum(isinstance(judgement, Judged) for judgement in judgements)
        self._counters.judged += judged
        self._counters.unjudged += len(judgements) - judged
        return judgements

    def stats(self) -> JudgeStats:
        """Everything counted so far."""
        counters, breaker = self._counters, self._asker.breaker
        shared = {f.name for f in fields(JudgeStats)} & {f.name for f in fields(Counters)}
        return JudgeStats(
            **{name: getattr(counters, name) for name in shared},
            latency_p50_s=counters.percentile_s(50),
            latency_p99_s=counters.percentile_s(99),
            validity=counters.readable / counters.answers if counters.answers else 1.0,
            breaker="open" if breaker.is_open else "closed",
            outages=breaker.outages,
            seconds_open=breaker.seconds_open,
        )

    async def close(self) -> None:
        """Drops what is under way, whose callers get RunFailed, and ends the connections."""
        self._closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for future in self._in_flight.values():
            _fail(future, RunFailed("The judge client was closed while poems waited."))
        self._in_flight.clear()
        await self._transport.close()
        if self._cache:
            self._cache.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def _take_off(
        self, keys: Sequence[str], poems: Sequence[PoemToJudge], known: Collection[str]
    ) -> "dict[str, asyncio.Future[Judgement]]":
        """The future of every poem that is not known; starts requests for those nobody asked for yet."""
        loop = asyncio.get_running_loop()
        waiting: dict[str, asyncio.Future[Judgement]] = {}
        by_topic: dict[tuple[str, str], list[_Flight]] = defaultdict(list)
        self._counters.poems += len(keys)
        for key, poem in zip(keys, poems, strict=True):
            if key in known:
                self._counters.cache_hits += 1
                continue
            if key in self._in_flight:
                self._counters.shared += 1
            else:
                self._in_flight[key] = loop.create_future()
                by_topic[poem.topic, poem.reference].append(_Flight(key, poem, self._in_flight[key]))
            waiting[key] = self._in_flight[key]
        for flights in by_topic.values():
            for start in range(0, len(flights), self._batch_size):
                task = loop.create_task(self._fly(flights[start : start + self._batch_size]))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        return waiting

    async def _fly(self, batch: Sequence[_Flight]) -> None:
        """Brings a batch to its end: every future is resolved, unless `close` cancels first."""
        try:
            judgements = await self._settle([flight.poem for flight in batch])
        except Exception as error:  # whoever waits raises it
            for flight in batch:
                _fail(flight.answer, error)
        else:
            pairs = list(zip(batch, judgements, strict=True))
            self._keep({flight.key: judged for flight, judged in pairs if isinstance(judged, Judged)})
            for flight, judgement in pairs:
                flight.answer.set_result(judgement)
        for flight in batch:
            del self._in_flight[flight.key]

    async def _settle(self, poems: Sequence[PoemToJudge], asked: int = 0) -> list[Judgement]:
        """Judges poems of one topic; those without a readable answer are asked about again, each alone."""
        judgements: list[Judgement]
        try:
            judgements = await self._ask(poems, asked)
        except GaveUp as error:
            judgements = [Unjudged(error.reason)] * len(poems)
            if error.is_outage or len(poems) == 1:
                return judgements
        if asked + 1 < self._settings.max_asks:
            for i, judgement in enumerate(judgements):
                if isinstance(judgement, Unjudged):
                    [judgements[i]] = await self._settle([poems[i]], asked + 1)
        return judgements

    async def _ask(self, poems: Sequence[PoemToJudge], asked: int) -> list[Judgement]:
        nonces = self._nonces.draw(poems[0].topic, len(poems) + 1, asked)
        answer = await self._asker.ask(self._rubric.ask(poems, nonces))
        judgements = [answer] * len(poems) if isinstance(answer, Unjudged) else self._rubric.read(answer, poems, nonces)
        self._counters.answers += len(judgements)
        self._counters.readable += sum(isinstance(judgement, Judged) for judgement in judgements)
        return list(judgements)

    def _key(self, poem: PoemToJudge) -> str:
        return cache_key(poem, self._settings.model, self._rubric.version, self._batch_size)

    def _cached(self, keys: Collection[str]) -> dict[str, Judgement]:
        try:
            return dict(self._cache.get(keys)) if self._cache else {}
        except sqlite3.Error:
            self._counters.cache_errors += 1
            return {}

    def _keep(self, judgements: dict[str, Judged]) -> None:
        try:
            if self._cache:
                self._cache.put(judgements)
        except sqlite3.Error:
            self._counters.cache_errors += 1


def _fail(future: "asyncio.Future[Judgement]", error: Exception) -> None:
    """Sets an error that may have nobody left to raise it, without asyncio's complaint about that."""
    if not future.done():
        future.set_exception(error)
        future.exception()
