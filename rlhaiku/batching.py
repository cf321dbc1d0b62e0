"""Scored groups in, one logical train batch out: unscored completions leave, too-small groups are dropped."""

from collections.abc import Sequence
from dataclasses import dataclass

from rlhaiku.advantages import group_advantages
from rlhaiku.config import AlgorithmConfig
from rlhaiku.types import GroupKey, Scored, ScoredGroup, TrainBatch, TrainGroup, TrainSample


@dataclass(frozen=True, slots=True)
class BatchResult:
    """A train batch and what did not make it in."""

    batch: TrainBatch
    dropped: dict[GroupKey, str]
    """Groups that are not trained, with the reason."""


def make_batch(
    step: int, groups: Sequence[ScoredGroup], algorithm: AlgorithmConfig, temperature: float
) -> BatchResult:
    """Computes each group's advantages over its scored completions; groups keep their order."""
    kept: list[TrainGroup] = []
    dropped: dict[GroupKey, str] = {}
    for scored in groups:
        num_scored = sum(isinstance(reward, Scored) for reward in scored.rewards)
        if num_scored < algorithm.min_scored:
            dropped[scored.key] = f"{num_scored} of {len(scored.rewards)} completions scored"
        else:
            kept.append(_train_group(scored, algorithm))
    return BatchResult(TrainBatch(step, temperature, tuple(kept)), dropped)


def _train_group(scored: ScoredGroup, algorithm: AlgorithmConfig) -> TrainGroup:
    pairs = [
        (completion, reward.total)
        for completion, reward in zip(scored.group.completions, scored.rewards, strict=True)
        if isinstance(reward, Scored)
    ]
    advantages = group_advantages([total for _, total in pairs], algorithm.advantage_scale)
    samples = tuple(
        TrainSample(completion.token_ids, completion.logprobs, advantage, completion.weight_version)
        for (completion, _), advantage in zip(pairs, advantages, strict=True)
    )
    return TrainGroup(scored.key, scored.group.prompt.token_ids, samples)
