"""What is wrong with a step, in words: signs that a run learns less than it could, and what to change."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

from rlhaiku.checkpoints import RunState
from rlhaiku.metrics import Reporter, StepReport
from rlhaiku.types import ScoredGroup

FLAT_SHARE = 0.5
TRUNCATED_SHARE = 0.25
DISTINCT = 0.6
"""Distinct word pairs of one poem a group, with 8 to 32 groups a step: runs whose poems stayed apart had 0.85 and more,
of three that ended with one poem for every prompt two fell below this within 50 steps, one after 209
(benchmarks/RESULTS.md)."""
LOGPROB_GAP = 0.02
"""Mean |trainer - rollout| per token: what bf16 engines may differ by; more is another model or temperature."""
STALE_GAP = 0.1
"""The same where completions are older than the weights they train: the policy's own steps are in it, too."""
GROWTH = 2.0
"""Over the run's own first steps."""
FIRST_STEPS, FEWEST_STEPS = 10, 5
"""Whose median growth is measured against, and how many of them must be there."""
ROUNDING = 1e-4
"""Below this a gap is rounding, and its doubling says nothing: engines in fp32 differ by some 1e-6."""


@dataclass(frozen=True, slots=True)
class Advice:
    """One sign."""

    sign: str
    """What was seen, with its number."""
    remedy: str
    """What to change."""


def advise(row: Mapping[str, float]) -> dict[str, Advice]:
    """Advice for one row of `step_metrics`, by a name that stays the same while the sign lasts."""
    found = {}
    if (share := row["group/zero_variance_share"]) > FLAT_SHARE:
        found["flat"] = Advice(
            f"in {share:.0%} of the groups every completion earned the same, so they taught nothing",
            "the prompts are too easy or too hard by now: raise rollout.group_size or rollout.temperature, or stop",
        )
    if (share := row["completion/truncated_share"]) > TRUNCATED_SHARE:
        found["truncated"] = Advice(
            f"{share:.0%} of the completions were cut off at rollout.max_tokens", "raise it, or check the end token"
        )
    if 0 < (distinct := row["completion/distinct_2"]) < DISTINCT:
        found["alike"] = Advice(
            f"poems for different prompts are alike: of their word pairs {distinct:.0%} are distinct",
            "read them; against one poem for everything try a smaller trainer.lr, "
            + ("or a larger reward.repeat_penalty" if "reward/repeated" in row else "or reward.repeat_penalty=0.25"),
        )
    if (count := row["reward/unscored"]) > 0:
        found["unscored"] = Advice(
            f"{count:.0f} completions could not be scored and left their groups",
            "samples.jsonl has the reasons; a judge needs LLM_JUDGE_URL to answer, a reward function must not raise",
        )
    is_fresh = row["rollout/staleness_mean"] == 0
    if (gap := row["train/logprob_gap"]) > largest_gap(is_fresh):
        found["gap"] = Advice(
            f"trainer and engine disagree by {gap:.3f} per token about what was sampled",
            "they should hold the same weights and temperature: check the engine's precision and its weight version"
            if is_fresh
            else "the policy moves too far in a step: a smaller trainer.lr or algorithm.max_importance_ratio=2 helps",
        )
    elif row.get("alarm/logprob_gap"):
        found["gap"] = Advice(
            f"trainer and engine disagree by {gap:.4f} per token about what was sampled, "
            f"more than {GROWTH:g} times what the run's first steps had",
            "they have drifted apart: compare both with a fresh engine on the newest checkpoint",
        )
    return found


class GapAlarm:
    """The Reporter that passes everything on, with `alarm/logprob_gap` added: a gap that grows is one going wrong."""

    def __init__(self, metrics_file: Path, reporters: Sequence[Reporter]) -> None:
        """`metrics_file`: what the run wrote before, cut to where it goes on."""
        rows = metrics_file.read_text().splitlines() if metrics_file.exists() else []
        self._first = [float(json.loads(row)["train/logprob_gap"]) for row in rows[:FIRST_STEPS]]
        self._reporters = reporters

    def step(self, report: StepReport) -> None:
        """Tells whether the step's gap is too large, or has grown."""
        gap, is_fresh = report.stats.logprob_gap, _is_fresh(report)
        is_wrong = gap > largest_gap(is_fresh) or (is_fresh and has_grown(gap, self._first))
        alarms = {"alarm/logprob_gap": float(is_wrong)}
        if len(self._first) < FIRST_STEPS:
            self._first.append(gap)
        report = replace(report, alarms={**report.alarms, **alarms})
        for reporter in self._reporters:
            reporter.step(report)

    def evaluation(self, state: RunState, groups: Sequence[ScoredGroup]) -> None:
        """Passed on as it is."""
        for reporter in self._reporters:
            reporter.evaluation(state, groups)


def _is_fresh(report: StepReport) -> bool:
    """Whether all completions were drawn with the weights that they train."""
    before = report.state.weight_version - 1
    return all(c.weight_version == before for scored in report.groups for c in scored.group.completions)


def largest_gap(is_fresh: bool) -> float:
    """What trainer and engine may differ by, per token; `is_fresh`: the completions are of the weights they train."""
    return LOGPROB_GAP if is_fresh else STALE_GAP


def has_grown(gap: float, first: Sequence[float]) -> bool:
    """Whether a step's gap is more than `GROWTH` times the median of those of the run's first steps."""
    return len(first) >= FEWEST_STEPS and gap > max(GROWTH * median(first), ROUNDING)
