"""What a run reports, as named numbers and poems, and the files they go to. `metric_names.py` says what each is."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol

import numpy as np

from rlhaiku.advantages import is_zero_variance
from rlhaiku.batching import BatchResult
from rlhaiku.checkpoints import RunState
from rlhaiku.evaluation import Answer, Comparison, answers_of, compare, summarize
from rlhaiku.files import write_whole, writing
from rlhaiku.haiku.repeats import distinct_pairs
from rlhaiku.types import Completion, Reward, Scored, ScoredGroup, SyncReport, TrainBatch, TrainStats

METRICS_FILE = "metrics.jsonl"
EVAL_SCORES = ("structure_mean", "strict_575", "topic_mention", "distinct_2")
"""What is reported of every evaluation, whatever the reward is; see `EvalSummary`."""


@dataclass(frozen=True)
class StepReport:
    """All there is to know about one finished train step."""

    state: RunState
    """After the step."""
    groups: tuple[ScoredGroup, ...]
    """The step's groups, dropped ones included, in claim order."""
    made: BatchResult
    """What was trained with which advantages, and which groups were dropped."""
    stats: TrainStats
    sync: SyncReport
    seconds: Mapping[str, float]
    """Wall time by phase: `rollout` (generation and scoring), `train`, `sync`."""
    rewards: Mapping[str, float]
    """What the scoring itself counted since the run began, e.g. of the judge."""
    alarms: Mapping[str, float] = field(default_factory=dict)
    """Signs that only the run's history shows, by metric name; see `health.GapAlarm`."""

    @cached_property
    def metrics(self) -> Mapping[str, float]:
        """`step_metrics` of it, made once for all who report it."""
        return step_metrics(self)


class Reporter(Protocol):
    """Is told about every finished step and evaluation."""

    def step(self, report: StepReport) -> None:
        """One train step is done and its weights are synced; told a moment later, while others are at work again."""

    def evaluation(self, state: RunState, groups: Sequence[ScoredGroup]) -> None:
        """The held-out prompts were answered with the weights of `state`."""


def step_metrics(report: StepReport) -> dict[str, float]:
    """One flat row of numbers for one step."""
    completions = [c for scored in report.groups for c in scored.group.completions]
    rewards = [r for scored in report.groups for r in scored.rewards]
    scored_rewards = [r for r in rewards if isinstance(r, Scored)]
    totals = [r.total for r in scored_rewards]
    num_tokens = sum([len(c.token_ids) for c in completions])
    return {
        "step": report.state.step,
        "weight_version": report.state.weight_version,
        "reward/mean": fmean(totals),
        "reward/std": float(np.std(totals)),
        **_component_means(scored_rewards),
        **_standard_errors(report.groups),
        "reward/unscored": len(rewards) - len(scored_rewards),
        "group/zero_variance_share": fmean([_is_flat(scored.rewards) for scored in report.groups]),
        "group/dropped": len(report.made.dropped),
        "completion/length_mean": num_tokens / len(completions),
        "completion/distinct_2": distinct_pairs(scored.group.completions[0].text for scored in report.groups),
        "completion/truncated_share": fmean([c.finish_reason == "length" for c in completions]),
        "rollout/staleness_mean": report.state.weight_version - 1 - fmean([c.weight_version for c in completions]),
        "rollout/tokens_per_s": num_tokens / report.seconds["rollout"],
        **{f"train/{key}": value for key, value in asdict(report.stats).items() if key != "step"},
        "sync/num_bytes": report.sync.num_bytes,
        **report.rewards,
        **report.alarms,
        **{f"time/{phase}_s": seconds for phase, seconds in report.seconds.items()},
    }


def evaluation_metrics(state: RunState, groups: Sequence[ScoredGroup]) -> dict[str, float]:
    """One flat row of numbers for one evaluation."""
    summary = summarize(answers_of(groups)).to_dict()
    low, high = summary["structure_ci"]
    totals = [reward.total for scored in groups for reward in scored.rewards if isinstance(reward, Scored)]
    return {
        "step": state.step,
        "weight_version": state.weight_version,
        **({"eval/reward": fmean(totals)} if totals else {}),
        **{f"eval/{name}": summary[name] for name in EVAL_SCORES},
        "eval/structure_low": low,
        "eval/structure_high": high,
    }


class RunFiles:
    """The Reporter that writes `metrics.jsonl`, `samples.jsonl` and `eval/step-NNNNNN.json` of a run directory."""

    def __init__(self, directory: Path, samples_interval: int, resumed_step: int = 0) -> None:
        """A resumed run forgets the rows after `resumed_step`: those steps are made again."""
        self._directory = directory
        self._samples_interval = samples_interval
        for name in (METRICS_FILE, "samples.jsonl"):
            _keep_rows(directory / name, resumed_step)

    def step(self, report: StepReport) -> None:
        """Appends the step's metrics, and now and then its poems."""
        _append(self._directory / METRICS_FILE, [report.metrics])
        if report.state.step % self._samples_interval == 0:
            rows = sample_rows(report.state.step, report.groups, report.made.batch)
            _append(self._directory / "samples.jsonl", rows)

    def evaluation(self, state: RunState, groups: Sequence[ScoredGroup]) -> None:
        """Writes the evaluation's summary and every poem."""
        path = self._evaluation_file(state.step)
        content = {"summary": summarize(answers_of(groups)).to_dict(), "samples": list(sample_rows(state.step, groups))}
        with writing(path):
            path.parent.mkdir(exist_ok=True)
        _write(path, content)

    def compare(self, last_step: int) -> Comparison:
        """The evaluation after `last_step` against the one before the first; also writes `eval/summary.json`."""
        base, trained = (_read_answers(self._evaluation_file(step)) for step in (0, last_step))
        comparison = compare(base, trained)
        _write(self._directory / "eval" / "summary.json", comparison.to_dict())
        return comparison

    def _evaluation_file(self, step: int) -> Path:
        return self._directory / "eval" / f"step-{step:06d}.json"


def sample_rows(
    step: int, groups: Iterable[ScoredGroup], batch: TrainBatch | None = None
) -> Iterator[dict[str, Any]]:
    """One row per completion: what was asked, answered and earned; with a batch, the advantage it was trained with."""
    trained = {group.key: group.samples for group in batch.groups} if batch else {}
    for scored in groups:
        samples = iter(trained.get(scored.key, ()))  # the scored completions of the group, in order
        for index, (completion, reward) in enumerate(zip(scored.group.completions, scored.rewards, strict=True)):
            row = {
                "step": step,
                "group": scored.key.claim,
                "index": index,
                "prompt_id": scored.key.prompt_id,
                "topic": scored.group.prompt.topic,
                "prompt": scored.group.prompt.text,
                **_sample(completion, reward),
            }
            sample = next(samples, None) if isinstance(reward, Scored) else None
            yield row | {"advantage": sample.advantage} if sample else row


def _sample(completion: Completion, reward: Reward) -> dict[str, Any]:
    row: dict[str, Any] = {"text": completion.text, "finish_reason": completion.finish_reason}
    row["weight_version"] = completion.weight_version
    if isinstance(reward, Scored):
        return row | {"reward": reward.total, "components": dict(reward.components)}
    return row | {"unscored": reward.reason}


def _component_means(rewards: Sequence[Scored]) -> dict[str, float]:
    names = sorted({name for reward in rewards for name in reward.components})
    return {f"reward/{name}": fmean([r.components[name] for r in rewards if name in r.components]) for name in names}


def _standard_errors(groups: Iterable[ScoredGroup]) -> dict[str, float]:
    """Of the total's mean and of each component's; parts of a component (`a/b`) have none.

    Completions of one prompt are alike, so each group counts once, with its mean.
    """
    group_means: defaultdict[str, list[float]] = defaultdict(list)
    for scored in groups:
        rewards = [reward for reward in scored.rewards if isinstance(reward, Scored)]
        if rewards:
            group_means["mean"].append(fmean([reward.total for reward in rewards]))
        for name, value in _component_means(rewards).items():
            group_means[name.removeprefix("reward/")].append(value)
    return {
        f"reward_se/{name}": float(np.std(means, ddof=1)) / math.sqrt(len(means))
        for name, means in group_means.items()
        if len(means) > 1 and "/" not in name
    }


def _is_flat(rewards: Sequence[Reward]) -> bool:
    totals = [reward.total for reward in rewards if isinstance(reward, Scored)]
    return bool(totals) and is_zero_variance(totals)


def _read_answers(path: Path) -> list[Answer]:
    rows = json.loads(path.read_text())["samples"]
    return [Answer(row["prompt_id"], row["topic"], row["text"]) for row in rows]


def _write(path: Path, content: Mapping[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=1).encode())


def _append(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with writing(path), path.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _keep_rows(path: Path, last_step: int) -> None:
    """Drops rows of steps after `last_step`; a row cut off by a crash goes too."""
    if not path.exists():
        return
    kept = []
    with writing(path):
        lines = path.read_bytes().splitlines()
    for line in lines:
        try:
            is_kept = json.loads(line)["step"] <= last_step
        except (ValueError, KeyError, TypeError):  # cut off, or what a power cut left of it
            break
        if is_kept:
            kept.append(line + b"\n")
    write_whole(path, b"".join(kept))
