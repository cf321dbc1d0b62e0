"""The judge client: poems in, `Judged` or `Unjudged` out, whatever the network does in between."""

import asyncio
import sqlite3
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from typing import Self

from rlhaiku.errors import RunFailed
from rlhaiku.judge.asking import Asker
from rlhaiku.judge.cache import JudgeCache, cache_key
from rlhaiku.judge.pacing import Clock, GaveUp, RealClock
from rlhaiku.judge.parsing import Judged, Judgement, Unjudged
from rlhaiku.judge.rubric import HaikuRubric, Nonces, PoemToJudge, Rubric, ask_rubric, read_answer
from rlhaiku.judge.settings import JudgeSettings
from rlhaiku.judge.stats import Counters, JudgeStats
from rlhaiku.judge.transport import HttpTransport, Transport


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
        self._nonces = Nonces(settings.nonce_salt)
        self._cache = JudgeCache(settings.cache_path) if settings.cache_path else None
        self._in_flight: dict[PoemToJudge, asyncio.Future[Judgement]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    async def judge(self, poems: Sequence[PoemToJudge]) -> list[Judgement]:
        """One judgement for each poem, in order.

        Waits out failures and outages; raises JudgeRefused when the server rejects the requests themselves.
        """
        if self._closed:
            raise RunFailed("A closed judge client was asked for judgements. Make a new one.")
        known = self._cached({poem for poem in poems if poem not in self._in_flight})
        waiting = self._take_off(poems, known)
        if waiting:
            await asyncio.wait(waiting.values())  # unlike gather, it leaves the futures of others alone
        answers = known | {poem: future.result() for poem, future in waiting.items()}
        judgements = [answers[poem] for poem in poems]
        judged = sum(isinstance(judgement, Judged) for judgement in judgements)
        self._counters.judged += judged
        self._counters.unjudged += len(judgements) - judged
        return judgements

    @property
    def is_waiting(self) -> bool:
        """Whether poems wait for a judge that is away, asks for patience or may not be asked any faster."""
        return self._asker.is_waiting

    @property
    def signs(self) -> int:
        """Grows with every request sent and every poem answered: what still grows does not hang."""
        return self._counters.requests + self._counters.answers

    def stats(self) -> JudgeStats:
        """Everything counted so far."""
        counters, breaker = self._counters, self._asker.breaker
        price_in, price_out = self._settings.usd_per_million
        shared = {f.name for f in fields(JudgeStats)} & {f.name for f in fields(Counters)}
        return JudgeStats(
            **{name: getattr(counters, name) for name in shared},
            cost_usd=(counters.prompt_tokens * price_in + counters.completion_tokens * price_out) / 1e6,
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
        self, poems: Sequence[PoemToJudge], known: Collection[PoemToJudge]
    ) -> "dict[PoemToJudge, asyncio.Future[Judgement]]":
        """The future of every poem that is not known; starts requests for those nobody asked for yet.

        Everybody who wants a poem's judgement waits for the same future.
        """
        loop = asyncio.get_running_loop()
        waiting: dict[PoemToJudge, asyncio.Future[Judgement]] = {}
        by_topic: dict[tuple[str, str], list[PoemToJudge]] = defaultdict(list)
        self._counters.poems += len(poems)
        for poem in poems:
            if poem in known:
                self._counters.cache_hits += 1
                continue
            if poem in self._in_flight:
                self._counters.shared += 1
            else:
                self._in_flight[poem] = loop.create_future()
                by_topic[poem.topic, poem.reference].append(poem)
            waiting[poem] = self._in_flight[poem]
        for together in by_topic.values():
            for start in range(0, len(together), self._batch_size):
                task = loop.create_task(self._fly(together[start : start + self._batch_size]))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        return waiting

    async def _fly(self, poems: Sequence[PoemToJudge]) -> None:
        """Brings a batch to its end: every future is resolved, unless `close` cancels first."""
        try:
            for poem, judgement in zip(poems, await self._settle(poems), strict=True):
                self._in_flight[poem].set_result(judgement)
        except Exception as error:  # whoever waits raises it
            for poem in poems:
                _fail(self._in_flight[poem], error)
        for poem in poems:
            del self._in_flight[poem]

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
        question = ask_rubric(self._rubric, poems, nonces)
        answer = question if isinstance(question, Unjudged) else await self._asker.ask(question)
        if isinstance(answer, Unjudged):
            judgements: list[Judgement] = [answer] * len(poems)
        else:
            judgements = read_answer(self._rubric, answer, poems, nonces)
        judged = {poem: one for poem, one in zip(poems, judgements, strict=True) if isinstance(one, Judged)}
        self._counters.answers += len(judgements)
        self._counters.readable += len(judged)
        self._keep(judged, 1 if asked else self._batch_size)  # who was asked about alone was judged in another mode
        return judgements

    def _key(self, poem: PoemToJudge, batch_size: int) -> str:
        return cache_key(poem, self._settings.model, self._rubric.version, batch_size)

    def _cached(self, poems: Collection[PoemToJudge]) -> dict[PoemToJudge, Judgement]:
        if not self._cache:
            return {}
        poem_of = {self._key(poem, self._batch_size): poem for poem in poems}
        try:
            return {poem_of[key]: judged for key, judged in self._cache.get(poem_of).items()}
        except sqlite3.Error:
            self._counters.cache_errors += 1
            return {}

    def _keep(self, judged: Mapping[PoemToJudge, Judged], batch_size: int) -> None:
        if not self._cache:
            return
        try:
            self._cache.put({self._key(poem, batch_size): one for poem, one in judged.items()})
        except sqlite3.Error:
            self._counters.cache_errors += 1


def _fail(future: "asyncio.Future[Judgement]", error: Exception) -> None:
    """Sets an error that may have nobody left to raise it, without asyncio's complaint about that."""
    if not future.done():
        future.set_exception(error)
        future.exception()
