"""Scored groups in, one logical train batch out: repeats cost, unscored completions leave, small groups are dropped."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from rlhaiku.advantages import group_advantages
from rlhaiku.config import AlgorithmConfig
from rlhaiku.haiku.repeats import repeated_shares, word_pairs
from rlhaiku.types import Group, GroupKey, Reward, Scored, ScoredGroup, TrainBatch, TrainGroup, TrainSample


@dataclass(frozen=True, slots=True)
class BatchResult:
    """A train batch and what did not make it in."""

    batch: TrainBatch
    dropped: dict[GroupKey, str]
    """Groups that are not trained, with the reason."""


def read_ahead(groups: Sequence[Group], penalty: float) -> None:
    """Most of the work of `penalize_repeats`, to be done while others score the groups: pairs are kept by text."""
    if penalty:
        for group in groups:
            for completion in group.completions:
                word_pairs(completion.text)


def penalize_repeats(groups: Sequence[ScoredGroup], penalty: float) -> tuple[ScoredGroup, ...]:
    """A step's groups with `penalty` x `repeated_shares` taken off each reward, and the share as component `repeated`.

    It compares whole steps, so nobody who scores a part of one can do it.
    """
    if not penalty:
        return tuple(groups)
    texts: defaultdict[str, list[str]] = defaultdict(list)
    for scored in groups:
        texts[scored.key.prompt_id] += [completion.text for completion in scored.group.completions]
    left = {prompt: iter(shares) for prompt, shares in repeated_shares(texts).items()}
    return tuple([
        ScoredGroup(scored.group, tuple([_less(reward, penalty, next(left[scored.key.prompt_id]))
                                         for reward in scored.rewards]))
        for scored in groups
    ])


def _less(reward: Reward, penalty: float, repeated: float) -> Reward:
    if not isinstance(reward, Scored):
        return reward
    return Scored(reward.total - penalty * repeated, {**reward.components, "repeated": repeated})


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
