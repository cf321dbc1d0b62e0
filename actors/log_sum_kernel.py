"""The log of a softmax's sum, inside a kernel: for those that read logits themselves. Imported only where Triton is."""

import triton
import triton.language as tl

BLOCK = tl.constexpr(4096)
"""Logits that a program looks at together."""


@triton.jit
def log_sum_of(
    logits: tl.tensor, row: tl.tensor, inverse_temperature: tl.tensor, vocabulary: tl.tensor
) -> tl.tensor:  # fmt: skip
    """Of one row of logits [N, V] over a temperature, read once."""
    place = tl.arange(0, BLOCK)
    best = tl.full([BLOCK], -1e30, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocabulary, BLOCK):
        where = start + place
        inside = where < vocabulary
        logit = tl.load(logits + row * vocabulary + where, mask=inside, other=-1e30).to(tl.float32)
        logit = tl.where(inside, logit * inverse_temperature, -1e30)
        higher = tl.maximum(best, logit)
        total = total * tl.exp(best - higher) + tl.where(inside, tl.exp(logit - higher), 0.0)
        best = higher
    highest = tl.max(best, 0)
    return highest + tl.log(tl.sum(total * tl.exp(best - highest), 0))
