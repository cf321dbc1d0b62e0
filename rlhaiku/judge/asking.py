"""One question to the judge, asked until it is answered: retries, pauses, outages."""

import asyncio
import json
import random
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


class JudgeRefused(RunFailed):
    """The judge's server rejects the request itself, so no retry helps: names the status and the server's words."""


class Asker:
    """Sends questions with bounded concurrency, and waits out what passes."""

    def __init__(self, settings: JudgeSettings, transport: Transport, clock: Clock, counters: Counters) -> None:
        self._settings, self._transport, self._clock, self._counters = settings, transport, clock, counters
        self._slots = asyncio.Semaphore(settings.max_concurrency)
        self._pace = Pace(settings.requests_per_s, clock)
        self._jitter = random.Random()  # several clients must not retry in step
        self._refusal: JudgeRefused | None = None
        self.breaker = Breaker(settings.breaker_failures, settings.probe_interval_s, settings.give_up_s, clock)

    async def ask(self, question: Question) -> str | Unjudged:
        """The text of the answer, or Unjudged if it was cut off; raises GaveUp and JudgeRefused."""
        body = self._body(question)
        patience = _Patience(self._settings, self._clock)
        while True:
            try:
                async with self._slots:
                    return await self.breaker.call(lambda: self._attempt(body))
            except Transient as error:
                failure = error
            if isinstance(failure, Throttled):
                self._counters.throttled += 1
                self._pace.pause(min(failure.retry_after_s, self._settings.give_up_s))
            patience.spend(failure, in_outage=self.breaker.is_open)
            self._counters.retries += 1
            await self._clock.sleep(patience.wait_s(failure, self._jitter))

    async def _attempt(self, body: dict[str, Any]) -> str | Unjudged:
        if self._refusal:  # the next request would be refused as well
            raise self._refusal
        await self._pace.turn()
        self._counters.requests += 1
        started = self._clock.now()
        reply = await self._transport.post(body)
        self._check(reply)
        answer = self._content(reply)
        self._counters.latencies_s.append(self._clock.now() - started)
        return answer

    def _check(self, reply: Reply) -> None:
        """Sorts statuses: 200 passes, 408, 429 and 5xx are worth another try, anything else is configuration."""
        if reply.status == 200:
            return
        words = f"status {reply.status}: {reply.text[:WORDS]}"
        if reply.status == 429:
            raise Throttled(words, reply.retry_after_s)
        if reply.status == 408 or reply.status >= 500:
            raise Transient(words, reply.retry_after_s)
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
        }
        if self._settings.thinking_switch:
            body["chat_template_kwargs"] = {"enable_thinking": False}
        if question.schema is not None:
            schema = {"name": "judgements", "strict": True, "schema": question.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        return body


class _Patience:
    """How much one request has failed; what an outage explains does not count."""

    def __init__(self, settings: JudgeSettings, clock: Clock) -> None:
        self._settings, self._clock = settings, clock
        self._failures = 0
        self._throttles = 0
        self._throttled_at = 0.0

    def spend(self, failure: Transient, in_outage: bool) -> None:
        """Counts a failure; raises GaveUp when it was one too many."""
        if isinstance(failure, Throttled):
            now = self._clock.now()
            self._throttled_at = self._throttled_at if self._throttles else now
            self._throttles += 1
            if now - self._throttled_at >= self._settings.give_up_s:
                raise GaveUp(f"throttled for {now - self._throttled_at:.0f} s", is_outage=True)
            return
        self._throttles = 0
        self._failures += not in_outage
        if self._failures >= self._settings.max_tries:
            raise GaveUp(f"failed {self._failures} times, last with {failure.reason}", is_outage=False)

    def wait_s(self, failure: Transient, jitter: random.Random) -> float:
        """Before the next try: what the server asks for, and never less than the backoff."""
        asked = min(failure.retry_after_s, self._settings.give_up_s)
        backoff = backoff_s(max(1, self._failures + self._throttles), jitter)
        return asked + backoff if isinstance(failure, Throttled) else max(asked, backoff)
