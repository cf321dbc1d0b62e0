"""A token for every row straight from bf16 logits, which are read twice; torch reads and writes them a dozen times, in
fp32. Imported only where Triton is.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = tl.constexpr(4096)
"""Logits that a program looks at together."""


def draw(logits: Tensor, temperature: float, draws: Tensor) -> tuple[Tensor, Tensor]:
    """As `decoding.sample` above temperature 0: logits [R, V], draws [R] in [0, 1) -> tokens [R], logprobs [R].

    Where sums of so many fp32 numbers do not reach a draw next to 1, the row gets its likeliest token.
    """
    rows, vocabulary = logits.shape
    tokens = torch.empty(rows, dtype=torch.long, device=logits.device)
    logprobs = torch.empty(rows, dtype=torch.float32, device=logits.device)
    _draw[(rows,)](logits.contiguous(), draws.float(), tokens, logprobs, 1 / temperature, vocabulary, num_warps=8)
    return tokens, logprobs


@triton.jit
def _draw(
    logits: tl.tensor, draws: tl.tensor, tokens: tl.tensor, logprobs: tl.tensor, inverse_temperature: tl.tensor,
    vocabulary: tl.tensor,
) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    place = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], -1e30, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    best_at = tl.zeros([BLOCK], tl.int32)
    for start in range(0, vocabulary, BLOCK):
        where = start + place
        inside = where < vocabulary
        logit = tl.load(logits + row * vocabulary + where, mask=inside, other=-1e30).to(tl.float32)
        logit = tl.where(inside, logit * inverse_temperature, -1e30)
        higher = tl.maximum(best, logit)
        total = total * tl.exp(best - higher) + tl.where(inside, tl.exp(logit - higher), 0.0)
        best_at = tl.where(logit > best, where, best_at)
        best = higher
    highest = tl.max(best, 0)
    log_sum = highest + tl.log(tl.sum(total * tl.exp(best - highest), 0))

    wanted = tl.load(draws + row)
    before = 0.0
    token = vocabulary
    for start in range(0, vocabulary, BLOCK):
        where = start + place
        inside = where < vocabulary
        logit = tl.load(logits + row * vocabulary + where, mask=inside, other=-1e30).to(tl.float32)
        share = tl.where(inside, tl.exp(logit * inverse_temperature - log_sum), 0.0)
        is_reached = inside & (before + tl.cumsum(share, 0) > wanted)
        token = tl.minimum(token, tl.min(tl.where(is_reached, where, vocabulary), 0))
        before += tl.sum(share, 0)
    likeliest = tl.min(tl.where(best == highest, best_at, vocabulary), 0)
    token = tl.where(token < vocabulary, token, likeliest)
    own = tl.load(logits + row * vocabulary + token).to(tl.float32) * inverse_temperature
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(logprobs + row, own - log_sum)
