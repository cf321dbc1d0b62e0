"""One question to the judge, asked until it is answered: retries, pauses, outages."""

import asyncio
import json
import random
from collections.abc import Mapping
from typing import Any

from rlhaiku.errors import RunFailed
from rlhaiku.judge.pacing import Breaker, Clock, GaveUp, Pace, Throttled, Transient, backoff_s
from rlhaiku.judge.parsing import Unjudged
from rlhaiku.judge.rubric import Question
from rlhaiku.judge.settings import JudgeSettings
from rlhaiku.judge.stats import Counters
from rlhaiku.judge.transport import Reply, Transport

WORDS = 300
"""Characters of a server's answer that an error quotes."""
REFUSALS = (301, 302, 303, 307, 308, 401, 403, 404)
"""Statuses that say the same of every request: another address, a missing key, an unknown model."""
DISPENSABLE = ("chat_template_kwargs", "seed")
"""Keys of a request that not every server takes: one that a server objects to by name is left out from then on."""


class JudgeRefused(RunFailed):
    """The judge's server rejects all requests, so no retry helps: names the status and the server's words."""


class Asker:
    """Sends questions with bounded concurrency, and waits out what passes."""

    def __init__(self, settings: JudgeSettings, transport: Transport, clock: Clock, counters: Counters) -> None:
        self._settings, self._transport, self._clock, self._counters = settings, transport, clock, counters
        self._slots = asyncio.Semaphore(settings.max_concurrency)
        self._pace = Pace(settings.requests_per_s, settings.give_up_s, clock)
        self._jitter = random.Random()  # several clients must not retry in step
        self._refusal: JudgeRefused | None = None
        self._objections: frozenset[str] = frozenset()
        self._has_answered = False
        self._rejected = 0
        self.breaker = Breaker(settings.breaker_failures, settings.probe_interval_s, settings.give_up_s, clock)

    @property
    def is_waiting(self) -> bool:
        """Whether requests wait for the server: it is down, asks for patience, or may not be asked any faster."""
        return self.breaker.is_open or self._pace.is_waiting

    async def ask(self, question: Question) -> str | Unjudged:
        """The text of the answer, or Unjudged if it was cut off or rejected; raises GaveUp and JudgeRefused."""
        body = self._body(question)
        failures = throttles = 0
        while True:
            try:
                async with self._slots:
                    return await self.breaker.call(lambda: self._attempt(body))
            except Throttled as error:
                self._counters.throttled += 1
                self._pace.throttled(error.retry_after_s)
                throttles += 1
            except Transient as error:
                failures += not self.breaker.is_open  # what an outage explains does not count
                if failures >= self._settings.max_tries:
                    raise GaveUp(f"failed {failures} times, last with {error.reason}", is_outage=False) from None
            self._counters.retries += 1
            await self._clock.sleep(backoff_s(max(1, failures + throttles), self._jitter))

    async def _attempt(self, body: dict[str, Any]) -> str | Unjudged:
        if self._refusal:  # the next request would be refused as well
            raise self._refusal
        await self._pace.turn()
        started = self._clock.now()
        reply = await self._post(body)
        if rejected := self._check(reply):
            return rejected
        answer = self._content(reply)
        self._counters.latencies_s.append(self._clock.now() - started)
        return answer

    async def _post(self, body: Mapping[str, Any], doubtful: frozenset[str] = frozenset()) -> Reply:
        """The reply to a request without the keys that the server objects to; `doubtful` may be such keys."""
        sent = {key: value for key, value in body.items() if key not in self._objections | doubtful}
        self._counters.requests += 1
        reply = await self._transport.post(sent)
        named = {key for key in DISPENSABLE if key in sent and key in reply.text}
        if reply.status in (400, 422) and named:
            return await self._post(body, doubtful | named)
        if reply.status == 200:  # a server that rejects the request without the keys as well just quoted them
            self._objections |= doubtful
        return reply

    def _check(self, reply: Reply) -> Unjudged | None:
        """Sorts statuses: 200 passes, 408, 429 and 5xx are worth another try, the rest is about a request or all."""
        words = f"status {reply.status}: {reply.text[:WORDS]}"
        if reply.status == 429 or (reply.status >= 500 and reply.retry_after_s):
            raise Throttled(words, reply.retry_after_s)
        if reply.status == 408 or reply.status >= 500:
            raise Transient(words)
        self._pace.answered()
        if reply.status == 200:
            self._has_answered = True
            return None
        self._rejected += 1
        if reply.status not in REFUSALS and (self._has_answered or self._rejected < self._settings.breaker_failures):
            return Unjudged(f"rejected with {words}")
        self._refusal = JudgeRefused(
            f"The judge at {self._settings.endpoint} must accept requests for model {self._settings.model!r}; "
            f"got {words}. Check LLM_JUDGE_URL, LLM_JUDGE_MODEL and LLM_JUDGE_API_KEY "
            "(on Modal: LLM_JUDGE_MODAL_KEY and LLM_JUDGE_MODAL_SECRET)."
        )
        raise self._refusal

    def _content(self, reply: Reply) -> str | Unjudged:
        try:
            completion = json.loads(reply.text)
            choice = completion["choices"][0]
            content, cut = choice["message"]["content"], choice.get("finish_reason") == "length"
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            raise Transient(f"not a chat completion: {reply.text[:WORDS]}") from None
        self._counters.add_usage(completion.get("usage"))
        if cut:  # the 1 of a 10 would be read as a 1
            return Unjudged("the answer was cut off at max_tokens")
        return content if isinstance(content, str) else Unjudged("the answer has no text")

    def _body(self, question: Question) -> dict[str, Any]:
        messages = [{"role": "system", "content": question.system}, {"role": "user", "content": question.user}]
        body: dict[str, Any] = {
            "model": self._settings.model,
            "messages": messages,
            "temperature": 0,
            "seed": 0,
            "max_tokens": question.max_tokens,
            "chat_template_kwargs": {"enable_thinking": False},
        }
        if question.schema is not None:
            schema = {"name": "judgements", "strict": True, "schema": question.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body

