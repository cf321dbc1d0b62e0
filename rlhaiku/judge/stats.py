"""Counting what the judge did, for metrics."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from rlhaiku.judge.pacing import BreakerState

RECENT = 4096
"""Latencies kept for percentiles."""
MOST_TOKENS = 10**9
"""In one answer; what claims more is nonsense."""


@dataclass(frozen=True, slots=True)
class JudgeStats:
    """A snapshot of everything since the client was made."""

    poems: int
    """Poems handed to `judge`."""
    judged: int
    unjudged: int
    cache_hits: int
    shared: int
    """Poems answered by an identical poem's request."""
    requests: int
    """Sent, retries included."""
    retries: int
    throttled: int
    """Answers that ask to come back later: status 429, or 5xx with Retry-After."""
    cache_errors: int
    """Reads or writes that the cache file refused; the poems were judged without it."""
    prompt_tokens: int
    """As the server's `usage` says."""
    completion_tokens: int
    cost_usd: float
    """Of these tokens, at the price in the settings."""
    answers: int
    """Per-poem answers of the judge, readable or not."""
    latency_p50_s: float
    """Over the last 4096 answered requests; 0 before the first."""
    latency_p99_s: float
    validity: float
    """Share of the judge's answers, per poem, that could be read; 1 before the first."""
    breaker: BreakerState
    outages: int
    seconds_open: float
    """Time spent in outages: deadlines should not count it."""


@dataclass(slots=True)
class Counters:
    """What the client adds to as it goes; names as in `JudgeStats`."""

    poems: int = 0
    judged: int = 0
    unjudged: int = 0
    cache_hits: int = 0
    shared: int = 0
    requests: int = 0
    retries: int = 0
    throttled: int = 0
    cache_errors: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    answers: int = 0
    """Per-poem answers of the judge, readable or not."""
    readable: int = 0
    latencies_s: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))

    def percentile_s(self, percent: float) -> float:
        """Nearest-rank percentile of the recent latencies, seconds; 0 if there are none."""
        ordered = sorted(self.latencies_s)
        return ordered[round(percent / 100 * (len(ordered) - 1))] if ordered else 0.0

    def add_usage(self, usage: Any) -> None:  # noqa: ANN401  (whatever the server sent)
        """Adds the tokens of a completion's `usage`, if it has any."""
        if isinstance(usage, dict):
            self.prompt_tokens += _count(usage.get("prompt_tokens"))
            self.completion_tokens += _count(usage.get("completion_tokens"))


def _count(value: object) -> int:
    """A number of tokens; what cannot be one is 0."""
    return value if isinstance(value, int) and 0 <= value <= MOST_TOKENS else 0
