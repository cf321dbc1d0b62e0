"""A token for every row straight from bf16 logits, which are read twice; torch reads and writes them a dozen times, in
fp32. Imported only where Triton is.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from actors.log_sum_kernel import BLOCK, log_sum_of


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
    log_sum = log_sum_of(logits, row, inverse_temperature, vocabulary)
    wanted = tl.load(draws + row)
    before = 0.0
    token = vocabulary
    largest = -1.0
    likeliest = 0
    for start in range(0, vocabulary, BLOCK):
        where = start + place
        inside = where < vocabulary
        logit = tl.load(logits + row * vocabulary + where, mask=inside, other=-1e30).to(tl.float32)
        share = tl.where(inside, tl.exp(logit * inverse_temperature - log_sum), 0.0)
        is_reached = inside & (before + tl.cumsum(share, 0) > wanted)
        token = tl.minimum(token, tl.min(tl.where(is_reached, where, vocabulary), 0))
        before += tl.sum(share, 0)
        most = tl.max(share, 0)
        likeliest = tl.where(most > largest, tl.min(tl.where(share == most, where, vocabulary), 0), likeliest)
        largest = tl.maximum(largest, most)
    token = tl.where(token < vocabulary, token, likeliest)
    own = tl.load(logits + row * vocabulary + token).to(tl.float32) * inverse_temperature
    tl.store(tokens + row, token.to(tl.int64))
    tl.store(logprobs + row, own - log_sum)
