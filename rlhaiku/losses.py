"""The clipped policy-gradient loss of GRPO, with an optional KL term; tensors in, tensors out."""

import math
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
    truncated: Tensor
    """[] number of tokens whose ratio was above `max_ratio`."""


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
    max_ratio: float = 0.0
    """Largest weight that a ratio may give a token; 0 for none. Above 1 + clip_high."""


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
    With `max_ratio` a token's gradient is min(ratio, max_ratio) A grad log pi: the clip alone bounds it only from one
    side, since a token that became likelier and should become less likely is weighed with its ratio, however large.
    KL is the k3 estimator (http://joschu.net/blog/kl-approx.html).
    """
    log_ratio = trainer_logprobs - rollout_logprobs
    ratio = log_ratio.exp()
    weight = _truncated(log_ratio, settings.max_ratio) if settings.max_ratio else ratio
    unclipped = weight * advantages
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
        truncated=(ratio > (settings.max_ratio or math.inf)).sum().detach(),
    )


def _truncated(log_ratio: Tensor, most: float) -> Tensor:
    """min(ratio, most), whose gradient is min(ratio, most) times that of the logprob: beyond `most` it has one too."""
    held = log_ratio.detach()
    return held.exp().clamp(max=most) * (log_ratio - held).exp()
