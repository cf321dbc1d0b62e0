"""Group-relative advantages (GRPO, arXiv 2402.03300; without the division: Dr.GRPO, arXiv 2503.20783)."""

import math
from collections.abc import Sequence
from typing import Literal

EPS = 1e-6
"""Added to the standard deviation; small beside any reward step, so that n=2 gives +-0.7071."""


def group_advantages(rewards_G: Sequence[float], scale: Literal["std", "none"]) -> tuple[float, ...]:
    """Rewards of one group's scored completions, centred, and divided by their sample standard deviation or not.

    Equal rewards give exact zeros. The sample (n - 1) deviation is the field's convention: slime, TRL, verl.
    Raises ValueError for fewer than two rewards.
    """
    if len(rewards_G) < 2:
        raise ValueError(f"an advantage compares at least 2 rewards; got {len(rewards_G)}. Drop the group.")
    if is_zero_variance(rewards_G):
        return (0.0,) * len(rewards_G)
    mean = math.fsum(rewards_G) / len(rewards_G)
    centred = [reward - mean for reward in rewards_G]
    if scale == "none":
        return tuple(centred)
    std = math.sqrt(math.fsum(c * c for c in centred) / (len(centred) - 1))
    return tuple(c / (std + EPS) for c in centred)


def is_zero_variance(rewards_G: Sequence[float]) -> bool:
    """Whether all completions earned the same: the group then teaches nothing."""
    return min(rewards_G) == max(rewards_G)
