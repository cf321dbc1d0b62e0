"""The clipped policy-gradient loss of GRPO, with an optional KL term; tensors in, tensors out."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LossOutput:
    """A loss that can be summed over micro-batches, and what to report; all sums are over loss tokens."""

    loss: Tensor
    """[] this micro-batch's share of the optimizer step's loss; call `.backward()` on it."""
    clipped: Tensor
    """[] number of tokens the clip cut off."""
    gap: Tensor
    """[] sum of |trainer logprob - rollout logprob|."""
    kl: Tensor
    """[] sum of the KL estimates; 0 without reference logprobs."""


@dataclass(frozen=True, slots=True)
class LossSettings:
    """The loss of one optimizer step."""

    clip_low: float
    clip_high: float
    kl_coef: float
    aggregation: Literal["token", "sequence"]
    num_tokens: int
    """Loss tokens of the whole optimizer step, all micro-batches together."""
    num_sequences: int
    """Completions of the whole optimizer step."""


def policy_loss(
    trainer_logprobs: Tensor,
    rollout_logprobs: Tensor,
    advantages: Tensor,
    sequence_lengths: Tensor,
    settings: LossSettings,
    reference_logprobs: Tensor | None = None,
) -> LossOutput:
    """-E[min(ratio A, clip(ratio, 1 - low, 1 + high) A)] + kl_coef KL, over N loss tokens; every tensor is [N].

    The ratio is to the logprobs of the rollout, so it corrects for staleness and for engine/trainer differences alike.
    KL is the k3 estimator (http://joschu.net/blog/kl-approx.html).
    """
    log_ratio = trainer_logprobs - rollout_logprobs
    ratio = log_ratio.exp()
    unclipped = ratio * advantages
    clipped = ratio.clamp(1 - settings.clip_low, 1 + settings.clip_high) * advantages
    per_token = -torch.minimum(unclipped, clipped)
    kl = torch.zeros_like(per_token)
    if reference_logprobs is not None:
        log_to_reference = reference_logprobs - trainer_logprobs
        kl = log_to_reference.exp() - 1 - log_to_reference
        per_token = per_token + settings.kl_coef * kl
    if settings.aggregation == "token":
        loss = per_token.sum() / settings.num_tokens
    else:
        loss = (per_token / sequence_lengths).sum() / settings.num_sequences
    return LossOutput(
        loss=loss,
        clipped=(clipped < unclipped).sum().detach(),
        gap=log_ratio.abs().sum().detach(),
        kl=kl.sum().detach(),
    )
