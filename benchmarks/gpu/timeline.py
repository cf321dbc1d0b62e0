"""When something was at work, from spans on the machine's own clock: pure functions over lists of (began, ended)."""

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

Span = tuple[float, float]
"""Seconds since the epoch."""
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of a torch profile's events that keep a card busy."""


def union_s(spans: Iterable[Span], window: Span) -> float:
    """Seconds of the window that at least one span covers."""
    covered, reached = 0.0, window[0]
    for began, ended in sorted(spans):
        began, ended = max(began, reached), min(ended, window[1])
        if ended > began:
            covered += ended - began
            reached = ended
    return covered


def gaps(work: Mapping[str, Iterable[Span]], window: Span) -> dict[str, float]:
    """Seconds of the window in which nobody was at work, by who had been and who was next, e.g. `engine -> trainer`.

    `step` stands for the window's ends.
    """
    found: defaultdict[str, float] = defaultdict(float)
    last, reached = "step", window[0]
    for (began, ended), who in sorted((span, who) for who, spans in work.items() for span in spans):
        if ended <= reached or began >= window[1]:
            continue
        if began > reached:
            found[f"{last} -> {who}"] += began - reached
        last, reached = who, min(ended, window[1])
    if reached < window[1]:
        found[f"{last} -> step"] += window[1] - reached
    return dict(found)


def medians_by_name(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The median of each name over all rows, where it is missing 0; the largest first."""
    names = {name for row in rows for name in row}
    middle = {name: median(row.get(name, 0.0) for row in rows) for name in sorted(names)}
    return dict(sorted(middle.items(), key=lambda item: -item[1]))


def idle_share(spans: Sequence[Span], windows: Sequence[Span]) -> float:
    """Share of all windows together that no span covers; raises ValueError if there are none."""
    total_s = sum(ended - began for began, ended in windows)
    if total_s <= 0:
        raise ValueError("an idle share needs at least one window")
    return 1 - sum(union_s(spans, window) for window in windows) / total_s


def read_spans(path: Path) -> list[Span]:
    """What `benchmarks.coordinator_overhead.spanned` wrote."""
    return [(began, ended) for began, ended in map(json.loads, path.read_text().splitlines())]


def read_trace(path: Path, categories: Collection[str] = ON_DEVICE) -> list[Span]:
    """The events of some categories in a profile that torch exported as a Chrome trace."""
    return spans_of(json.loads(path.read_text()), categories)


def spans_of(trace: Mapping[str, Any], categories: Collection[str]) -> list[Span]:
    """The same of a trace that is loaded."""
    base_s = trace.get("baseTimeNanoseconds", 0) / 1e9
    return [
        (base_s + event["ts"] / 1e6, base_s + (event["ts"] + event["dur"]) / 1e6)
        for event in trace["traceEvents"] if event.get("ph") == "X" and event.get("cat") in categories
    ]
