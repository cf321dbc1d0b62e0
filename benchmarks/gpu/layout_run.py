"""One layout's steps through the real coordinator, with a real ledger, and everything that is measured on the way."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from actors.actor import Actor
from benchmarks.gpu import inside
from benchmarks.gpu.memory import compare_memory, peaks, used_gb
from benchmarks.gpu.observe import ask, read_phases
from benchmarks.gpu.timeline import Span, gaps, idle_share, medians_by_name, union_s
from launch.checks import resolve_model
from launch.estimates import model_shape, train_flops
from launch.placement import GpuPlacement, Placement
from launch.plan import Plan
from launch.start import Cast
from rlhaiku.checkpoints import CheckpointStore, RunState
from rlhaiku.config import RunConfig
from rlhaiku.coordinator import Coordinator, Surroundings
from rlhaiku.ledger import LEDGER_FILE, Ledger
from rlhaiku.metrics import StepReport
from rlhaiku.prompts import PromptOrder
from rlhaiku.roles import Rollouts
from rlhaiku.types import GroupRequest, Prompt, ScoredGroup

WARM = 2
"""Steps that are in no median."""
AT_WORK = 0.3
"""Of a rollout's time, after which an engine is killed: it has begun, and is not done."""


class LayoutRun:
    """Fills a layout's row of the document as it goes. The run's Reporter, and its CrewWatcher."""

    def __init__(
        self, config: RunConfig, prompts: Sequence[Prompt], directory: Path, row: dict[str, Any],
        ceilings: dict[str, Any] | None,
    ) -> None:  # fmt: skip
        """`directory`: where observed actors write, and where the ledger is to be."""
        self._config, self._prompts, self._directory, self._row = config, prompts, directory, row
        self._ceilings = ceilings
        self._steps: list[tuple[str, Span]] = []
        self._reports: list[StepReport] = []
        self._memory: list[list[float]] = []
        self._died: list[str] = []
        self._recovered: list[float] = []

    def step(self, report: StepReport) -> None:
        """Keeps it; see Reporter."""
        self._reports.append(report)

    def evaluation(self, state: RunState, groups: Sequence[ScoredGroup]) -> None:
        """There is none here."""

    def died(self, name: str, why: str) -> None:
        """See CrewWatcher."""
        self._died.append(name)

    def recovered(self, name: str, seconds: float, up_s: float) -> None:
        """See CrewWatcher."""
        self._recovered.append(seconds)

    def untaken(self, why: str, *names: str) -> None:
        """What could not be taken is null, with the reason."""
        self._row |= dict.fromkeys(names)
        self._row["untaken"] |= dict.fromkeys(names, why)

    @contextmanager
    def recording(self, cast: Cast) -> Iterator[None]:
        """From the first weights on; whatever ends it, the steps until then are in the row."""
        self._cast, self._striker = cast, Striker(cast.roles.rollouts)
        roles = replace(cast.roles, rollouts=self._striker)
        store = CheckpointStore(self._directory / "checkpoints", self._config.output.keep_last)
        with Ledger(self._directory / LEDGER_FILE) as ledger:
            ledger.begin_attempt(0)
            order = PromptOrder(self._prompts, self._config.seed)
            around = Surroundings(order, (), store, (self,), (ledger,))
            self._ledger, self._coordinator = ledger, Coordinator(self._config, roles, around)
            self._row["first_sync_s"] = cast.roles.weight_sync.publish(0).seconds
            try:
                yield
            finally:
                self._row["steps"] = self._rows()

    def steady(self, count: int) -> None:
        """So many steps as they are, and their medians."""
        self._make(count, "steady")
        rows = self._rows()
        ranks = len(self._ranks())
        self._row["median"] = medians(rows, self._flops_per_token(), ranks, self._ceilings)
        self._row["sync"] = sync_row(rows, self._way(), self._ceilings, self._config.cluster.colocate)
        (said,) = ask(self._ranks()[:1], inside.logged)
        self._row["slime_perf"] = said or None

    def memory(self, plan: Plan, placement: Placement | GpuPlacement, before: Sequence[float]) -> None:
        """The most that each card had of this run, against the plan: what torch or SGLang took once, it keeps.

        But for slime's updater, which has the trainer give back what it does not use in every sync.
        """
        if not before or not all(self._memory):
            self.untaken("the driver does not say what is used", "memory")
            return
        engines, ranks = self._engines(), self._ranks()
        cards = ask([*engines, *ranks], inside.card)
        tokens = ask(engines, inside.cache_tokens)
        if isinstance(placement, GpuPlacement):
            places = (*placement.engine_gpus, *placement.rank_gpus)
        else:
            places = (*placement.engine_bundles, *placement.rank_bundles)
        per_token = model_shape(resolve_model(self._config.model.path)).kv_bytes_per_token
        pools = {card: count * per_token / 1e9
                 for card, count in zip(cards[: len(engines)], tokens, strict=True) if count is not None}
        card_of = dict(zip(places, cards, strict=True))
        self._row["memory"] = compare_memory(plan.gpus, card_of, before, peaks(self._memory), pools)

    def idle(self, count: int, is_rehearsal: bool) -> None:
        """So many steps more with every process' kernels recorded: how long each card had none."""
        actors = [*self._engines(), *self._ranks(), *self._named("weight relay")]
        cards = ask(actors, inside.card)
        began = len(self._steps)
        ask(actors, inside.start_profile, str(self._directory))
        self._make(count, "profiled")
        spans = ask(actors, inside.stop_profile, str(self._directory))
        windows = [window for _, window in self._steps[began:]]
        walls = [median(end - start for _, (start, end) in some)
                 for some in (self._steps[WARM:began] or self._steps[:began], self._steps[began:])]
        self._row["profile"] = {
            "slowdown": walls[1] / walls[0],
            "busy_s": {actor.name: sum(union_s(own, window) for window in windows) / count
                       for actor, own in zip(actors, spans, strict=True)},
        }
        if is_rehearsal:
            self.untaken("there is no card", "idle")
            return
        of_card: dict[int, list[Span]] = {}
        for card, own in zip(cards, spans, strict=True):
            of_card.setdefault(card, []).extend(own)
        shares = {card: idle_share(own, windows) for card, own in sorted(of_card.items())}
        self._row["idle"] = {"per_gpu": shares, "share": sum(shares.values()) / len(shares)}

    def kill(self, count: int) -> None:
        """Kills an engine while it draws; so many steps later nothing may be missing, and the trainer be the same."""
        row: dict[str, Any] = {}
        self._row["kill"] = row
        ranks = [_pid(rank) for rank in self._ranks()]
        rollout_s = self._row["median"]["rollout_s"]
        victim = self._engines()[0]

        def strike() -> None:
            time.sleep(AT_WORK * rollout_s)
            row["struck"] = victim.strike()

        self._striker.strike = strike
        self._make(count, "killed")
        lineage = [claim for step in self._ledger.lineage() for claim in step.trained + step.dropped]
        expected = list(range(len(self._steps) * self._config.rollout.groups_per_step))
        row |= {
            "died": self._died, "recovered_s": self._recovered[0] if self._recovered else None,
            "groups": len(expected), "lineage_complete": lineage == expected,
            "ranks_kept": [_pid(rank) for rank in self._ranks()] == ranks,
        }

    def _make(self, count: int, kind: str) -> None:
        with self._coordinator.chronicle:  # at its end the last step is told, too
            for _ in range(count):
                began = time.time()
                self._coordinator.step()
                self._steps.append((kind, (began, time.time())))
        self._memory.append(used_gb())  # not between steps: engines may be at work for the next one

    def _rows(self) -> list[dict[str, Any]]:
        phases = read_phases(self._directory)
        return [step_row(kind, window, phases, report)
                for (kind, window), report in zip(self._steps, self._reports, strict=False)]  # telling may have failed

    def _flops_per_token(self) -> float:
        """Useful ones: without those of recomputation."""
        return train_flops(model_shape(resolve_model(self._config.model.path)), has_reference=False, recompute=False)

    def _engines(self) -> list[Actor]:
        return self._named("rollout engine")

    def _ranks(self) -> list[Actor]:
        return self._named("the trainer", "trainer rank")

    def _named(self, *beginnings: str) -> list[Actor]:
        return [actor for actor in self._cast.actors() if actor.name.startswith(beginnings)]

    def _way(self) -> str:
        """How weights go to the engines."""
        if self._config.trainer.backend == "torch":
            return "ours"
        return "slime" if self._config.cluster.weight_path == "slime" else "persistent"


class Striker:
    """Rollouts that pass everything on, and call `strike` once after the next requests."""

    def __init__(self, rollouts: Rollouts) -> None:
        self._rollouts = rollouts
        self.strike: Callable[[], None] | None = None

    def submit(self, requests: Sequence[GroupRequest]) -> None:
        """See Rollouts."""
        self._rollouts.submit(requests)
        strike, self.strike = self.strike, None
        if strike:
            strike()


def step_row(kind: str, window: Span, phases: dict[str, list[Span]], report: StepReport) -> dict[str, Any]:
    """One step in numbers: seconds in which somebody did a phase's work, and those in which nobody did anything."""
    completions = [each for scored in report.groups for each in scored.group.completions]
    wall_s, stats = window[1] - window[0], report.stats
    work = [span for spans in phases.values() for span in spans]
    return {
        "step": report.state.step, "kind": kind, "wall_s": wall_s,
        **{f"{phase}_s": union_s(spans, window) for phase, spans in phases.items()},
        "sync_s": report.sync.seconds, "coordinator_s": wall_s - union_s(work, window), "gaps": gaps(phases, window),
        "samples": len(completions), "tokens": sum(len(each.token_ids) for each in completions),
        "train_tokens": stats.num_forward_tokens, "logprob_gap": stats.logprob_gap, "grad_norm": stats.grad_norm,
        "reward_mean": _mean_reward(report), "weight_version": report.state.weight_version,
        "checksum": report.sync.checksum, "num_bytes": report.sync.num_bytes,
        "engines_equal": True,  # the sync has compared every engine with the trainer, and raises WeightMismatch
    }  # fmt: skip


def medians(
    rows: Sequence[dict[str, Any]], flops_per_token: float, ranks: int, ceilings: dict[str, Any] | None
) -> dict[str, Any]:
    """Of steady steps: seconds by phase, rates, and what the trainer's cards do of what they can."""
    counted = rows[WARM:] or rows
    middle = {name: median(row[name] for row in counted) for name in counted[0] if name.endswith("_s")}
    tokens, samples, trained = (median(row[name] for row in counted) for name in ("tokens", "samples", "train_tokens"))
    tflops = flops_per_token * trained / (middle["train_s"] * ranks) / 1e12
    return middle | {
        "tokens_per_s": tokens / middle["wall_s"], "samples_per_s": samples / middle["wall_s"], "samples": samples,
        "coordinator_share": median(row["coordinator_s"] / row["wall_s"] for row in counted),
        "gaps": medians_by_name([row["gaps"] for row in counted]),
        "logprob_gap": max(row["logprob_gap"] for row in counted),
        "train_tflops": tflops, "train_over_matmul": tflops / min(ceilings["matmul_tflops"]) if ceilings else None,
        "checksums_differ": len({row["checksum"] for row in rows}) == len(rows),
        "engines_equal": all(row["engines_equal"] for row in rows),
    }  # fmt: skip


def sync_row(
    rows: Sequence[dict[str, Any]], way: str, ceilings: dict[str, Any] | None, is_colocated: bool
) -> dict[str, Any]:
    """A weight sync, until engines draw with what they got, and its sending against the same bytes at the ceiling.

    That is a copy within a card where every engine finds the weights on its own, else a broadcast.
    """
    counted = rows[WARM:] or rows
    names = ("sync_s", "push_s", "verify_s", "load_s")
    sync_s, push_s, verify_s, load_s = (median(row[name] for row in counted) for name in names)
    num_bytes = counted[-1]["num_bytes"]
    kind = "copy" if is_colocated and way != "ours" else "broadcast"
    gbs = ceilings and (min(ceilings["copy_gbs"]) if kind == "copy" else ceilings["broadcast_gbs"])
    moving_s = push_s + load_s
    return {
        "way": way, "s": sync_s + load_s, "push_s": push_s, "verify_s": verify_s, "load_s": load_s,
        "num_bytes": num_bytes, "gbs": num_bytes / moving_s / 1e9 if moving_s else None,
        "ceiling": kind, "ceiling_gbs": gbs, "over_ceiling": moving_s / (num_bytes / gbs / 1e9) if gbs else None,
    }  # fmt: skip


def _mean_reward(report: StepReport) -> float | None:
    totals = [reward.total for scored in report.groups for reward in scored.rewards if hasattr(reward, "total")]
    return sum(totals) / len(totals) if totals else None


def _pid(actor: Actor) -> int | None:
    process = actor.process()
    return process.pid if process else None
