"""The goals of the cluster layout, each with what was measured and whether it is met, or why that is unknown."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

GPUS, MODEL, SAMPLES = 8, "4B", 1024
STEP_S, STRETCH_S, SYNC_S = 1.5, 0.9, 0.120
IDLE, IDLE_AHEAD, OVERHEAD, GAP, MEMORY = 0.20, 0.10, 0.02, 0.02, 0.10
AHEAD = "split/ahead"
REHEARSED = "a rehearsal without cards"
Row = dict[str, Any]


def goals(document: Row) -> list[Row]:
    """Every goal. Whether a speed is reached is said only of the whole layout; of less, the value stands alone."""
    rows: list[Row] = document["layouts"]
    synchronous = [row for row in rows if row["name"] != AHEAD]
    ahead = [row for row in rows if row["name"] == AHEAD]
    smaller, rehearsed = _smaller(document), REHEARSED if document["circumstances"]["cpu_rehearsal"] else ""
    return [
        _goal("seconds per step", STEP_S, min, _taken(rows, "median", lambda found: found["wall_s"]), smaller),
        _goal("seconds per step, stretch", STRETCH_S, min,
              _taken(rows, "median", lambda found: found["wall_s"]), smaller),
        _goal("seconds of a weight sync, SGLang by persistent handles", SYNC_S, min,
              _taken(_of(rows, "persistent"), "sync", lambda found: found["s"]), smaller),
        _goal("seconds of a weight sync, our engine", SYNC_S, min,
              _taken(_of(rows, "ours", "ahead"), "sync", lambda found: found["s"]), smaller),
        _goal("seconds of a weight sync, slime's primitive", None, min,
              _taken(_of(rows, "megatron"), "sync", lambda found: found["s"]), smaller),
        _goal("idle share of the cards", IDLE, min, _taken(synchronous, "idle", lambda found: found["share"]), smaller),
        _goal("idle share of the cards, one step ahead (our engine; SGLang's hold one version)", IDLE_AHEAD, min,
              _taken(ahead, "idle", lambda found: found["share"]), smaller),
        _goal("coordinator's share of a step", OVERHEAD, max,
              _taken(rows, "median", lambda found: found["coordinator_share"]), rehearsed),
        _goal("logprob gap", GAP, max, _taken(synchronous, "median", lambda found: found["logprob_gap"]), rehearsed),
        _goal("memory against the plan, relative error", MEMORY, max,
              _taken(rows, "memory", lambda found: max(abs(card["relative_error"]) for card in found)), rehearsed),
        _goal("weights equal on all engines after every sync, and new each time", True, min,
              _taken(rows, "median", lambda found: found["engines_equal"] and found["checksums_differ"]), ""),
        _goal("nothing lost when an engine is killed", True, min,
              _taken(rows, "kill", lambda found: found["struck"] and found["lineage_complete"]
                     and found["ranks_kept"]), ""),
    ]  # fmt: skip


def _smaller(document: Row) -> str:
    """What of a run is less than the whole layout; empty if nothing is."""
    about, taken = document["circumstances"], [row for row in document["layouts"] if row.get("median")]
    said = [REHEARSED] if about["cpu_rehearsal"] else []
    said += [] if about["gpus"] >= GPUS else [f"{about['gpus']} GPUs for {GPUS}"]
    others = sorted({str(row["model"]) for row in taken} - {MODEL})
    said += [f"model {', '.join(others)} for {MODEL}"] if others else []
    counts = sorted({row["median"]["samples"] for row in taken} - {SAMPLES})
    said += [f"steps of {', '.join(f'{count:.0f}' for count in counts)} samples for {SAMPLES}"] if counts else []
    return "; ".join(said)


def _of(rows: Iterable[Row], *ways: str) -> list[Row]:
    return [row for row in rows if row["name"].rpartition("/")[2] in ways]


def _taken(rows: Sequence[Row], part: str, value: Callable[[Any], Any]) -> tuple[dict[str, Any], str]:
    """Values by layout, and why others have none."""
    values, why = {}, []
    for row in rows:
        if row.get(part):
            values[row["name"]] = value(row[part])
        else:
            why.append(f"{row['name']}: {row['untaken'].get(part) or row['why'] or 'not reached'}")
    return values, "; ".join(why) or "not asked for"


def _goal(
    name: str, goal: float | None, choose: Callable[..., str], taken: tuple[dict[str, Any], str], doubt: str
) -> Row:
    """`choose`: the layout that counts, by its value: the best or the worst one; `doubt`: why that decides nothing."""
    values, missing = taken
    row = {"name": name, "goal": goal, "value": None, "met": None, "reason": missing, "by_layout": values}
    if not values:
        return row
    chosen = choose(values, key=lambda layout: values[layout])
    value = values[chosen]
    if not doubt and goal is not None:
        row["met"] = value is True if goal is True else value <= goal
    return row | {"value": value, "reason": "; ".join(filter(None, [chosen, doubt]))}
