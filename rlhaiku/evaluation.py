"""What an evaluation says: means with honest intervals, base and trained compared prompt by prompt.

Everything is computed from completion texts and prompt topics, so evaluations compare across reward functions.
The prompt is the unit: its completions are alike, so intervals resample prompts, never completions, and a mean is the
mean over prompts of each prompt's mean. Letters in shapes: P prompts, M metrics.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rlhaiku.haiku.legitimacy import score_legitimacy
from rlhaiku.haiku.repeats import distinct_pairs
from rlhaiku.haiku.structure import score_structure, strip_template
from rlhaiku.haiku.topic import mentions_topic
from rlhaiku.types import ScoredGroup

RESAMPLES = 2000
"""Bootstrap resamples of an interval."""

_SEED = 575
_PERCENTILES = (2.5, 97.5)
_METRICS = ("structure_mean", "strict_575", "topic_mention")
"""The metrics that are means over completions; the order of M."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Answer:
    """One completion of an evaluation, as its file keeps it."""

    prompt_id: str
    topic: str
    text: str


@dataclass(frozen=True, slots=True)
class EvalSummary:
    """One evaluation in numbers."""

    structure_mean: float
    """Mean structure x legitimacy, in [0, 1]: a text that is not made of language has no structure to speak of."""
    structure_ci: tuple[float, float]
    """95 % bootstrap interval of `structure_mean`, over prompts."""
    strict_575: float
    """Share of poems that are exactly 5-7-5, and legitimate."""
    topic_mention: float
    """Share of poems that name their topic."""
    distinct_2: float
    """Distinct word pairs / word pairs within lines, over all completions: falls when poems repeat themselves."""
    prompts: int
    completions: int

    def to_dict(self) -> dict[str, Any]:
        """The summary as JSON has it; the interval is a list `[low, high]`."""
        return asdict(self) | {"structure_ci": list(self.structure_ci)}


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """Trained minus base, in the metric's own unit."""

    mean: float
    low: float
    """Lower end of the 95 % bootstrap interval, over prompts."""
    high: float
    """Upper end."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A trained model against its base, on the same prompts."""

    base: EvalSummary
    trained: EvalSummary
    differences: dict[str, PairedDifference]
    """Trained minus base for `structure_mean`, `strict_575` and `topic_mention`, paired by prompt."""
    pairs: tuple[tuple[Answer, Answer], ...]
    """Base and trained answer to the same prompt: prompts evenly spread, always their first completion."""

    def to_dict(self) -> dict[str, Any]:
        """The comparison as `eval/summary.json` has it."""
        return {
            "base": self.base.to_dict(),
            "trained": self.trained.to_dict(),
            "differences": {name: asdict(difference) for name, difference in self.differences.items()},
            "poems": [{"topic": b.topic, "base": b.text, "trained": t.text} for b, t in self.pairs],
        }


def answers_of(groups: Iterable[ScoredGroup]) -> list[Answer]:
    """Every completion of the groups, in order."""
    return [
        Answer(scored.key.prompt_id, scored.group.prompt.topic, completion.text)
        for scored in groups
        for completion in scored.group.completions
    ]


def summarize(answers: Sequence[Answer]) -> EvalSummary:
    """Sums an evaluation up. Raises ValueError if there is nothing to sum up."""
    per_prompt = np.stack(list(_prompt_means(answers).values()))
    means = dict(zip(_METRICS, per_prompt.mean(axis=0).tolist(), strict=True))
    low, high = _bootstrap(per_prompt)
    return EvalSummary(
        **means,
        structure_ci=(float(low[0]), float(high[0])),
        distinct_2=distinct_pairs(answer.text for answer in answers),
        prompts=len(per_prompt),
        completions=len(answers),
    )


def compare(base: Sequence[Answer], trained: Sequence[Answer], num_pairs: int = 5) -> Comparison:
    """Both evaluations and their paired differences; raises ValueError if one is empty or their prompts differ."""
    before, after = _prompt_means(base), _prompt_means(trained)
    _require_same_prompts(before.keys(), after.keys())
    per_prompt = np.stack([after[prompt_id] - before[prompt_id] for prompt_id in before])
    bounds = zip(_METRICS, per_prompt.mean(axis=0), *_bootstrap(per_prompt), strict=True)
    differences = {name: PairedDifference(float(mean), float(low), float(high)) for name, mean, low, high in bounds}
    return Comparison(summarize(base), summarize(trained), differences, _pairs(base, trained, num_pairs))


def _pairs(base: Sequence[Answer], trained: Sequence[Answer], count: int) -> tuple[tuple[Answer, Answer], ...]:
    first_before, first_after = ({a.prompt_id: a for a in reversed(answers)} for answers in (base, trained))
    ids = list(dict.fromkeys(answer.prompt_id for answer in base))
    chosen = [ids[i * len(ids) // count] for i in range(count)] if count < len(ids) else ids
    return tuple((first_before[prompt_id], first_after[prompt_id]) for prompt_id in chosen)


def _prompt_means(answers: Sequence[Answer]) -> dict[str, FloatArray]:
    """[M] metric means of each prompt over its completions."""
    if not answers:
        raise ValueError("an evaluation needs at least one answer; got none. Evaluate at least one prompt.")
    scores: defaultdict[str, list[tuple[float, float, float]]] = defaultdict(list)
    for answer in answers:
        structure = score_structure(answer.text)
        earned = structure.total * score_legitimacy(structure.poem).total
        named = mentions_topic(strip_template(answer.text), answer.topic)
        scores[answer.prompt_id].append((earned, float(earned == 1.0), float(named)))
    return {prompt_id: np.asarray(rows, dtype=np.float64).mean(axis=0) for prompt_id, rows in scores.items()}


def _bootstrap(per_prompt: FloatArray) -> tuple[FloatArray, FloatArray]:
    """[M] lower and [M] upper end of the 95 % interval of the mean of `per_prompt` [P, M]."""
    count = len(per_prompt)
    resamples = np.random.default_rng(_SEED).integers(count, size=(RESAMPLES, count))
    low, high = np.percentile(per_prompt[resamples].mean(axis=1), _PERCENTILES, axis=0)
    return low, high


def _require_same_prompts(base: Set[str], trained: Set[str]) -> None:
    only_one = sorted(base ^ trained)
    if only_one:
        raise ValueError(
            f"both evaluations must have the same prompts; got {len(only_one)} that only one has, e.g. {only_one[:5]}. "
            "Evaluate base and trained on the same held-out prompts."
        )
