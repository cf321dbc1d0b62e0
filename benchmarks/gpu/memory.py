"""What is taken on the cards, as their driver says, against what was planned."""

import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from launch.plan import GpuPlan

CACHE = "engine KV cache"
QUERY = ("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits")
LIMIT_S = 30.0


def used_gb() -> list[float]:
    """By card, of all processes together, 1 GB being 10^9 bytes; empty where no driver says so."""
    try:
        said = subprocess.run(QUERY, capture_output=True, text=True, timeout=LIMIT_S, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return [int(line) * 2**20 / 1e9 for line in lines] if all(line.isdecimal() for line in lines) else []


def peaks(readings: Sequence[Sequence[float]]) -> list[float]:
    """By card, the highest of several readings."""
    return [max(of_card) for of_card in zip(*readings, strict=True)]


def compare_memory(
    plans: Sequence[GpuPlan], card_of: Mapping[int, int], before: Sequence[float], peak: Sequence[float],
    caches: Mapping[int, float],
) -> list[dict[str, Any]]:  # fmt: skip
    """Planned and measured GB by card.

    `card_of`: the card of each place in the plan; `caches`: GB that a card's engine took for keys and values at its
    start, needed or not, which are counted on neither side. A card without one has its cache on both.
    """
    rows = []
    for plan in plans:
        if plan.index not in card_of:
            continue
        card = card_of[plan.index]
        cache = caches.get(card)
        planned = plan.total_gb - (0.0 if cache is None else plan.gigabytes.get(CACHE, 0.0))
        measured = peak[card] - before[card] - (cache or 0.0)
        rows.append({
            "gpu": card, "planned_gb": planned, "measured_gb": measured, "kv_pool_gb": cache,
            "relative_error": (measured - planned) / planned if planned else None,
        })
    return rows
