"""Log-probabilities of chosen tokens straight from bf16 logits: each is read once, and once more for its gradient.

In torch fp32 copies of all logits are written and read a dozen times. Imported only where Triton is.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from actors.log_sum_kernel import BLOCK, log_sum_of


class ChosenLogprobs(torch.autograd.Function):
    """[N] fp32 log-softmax of logits [N, V] / temperature at targets [N]."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float) -> Tensor:  # noqa: ANN401
        """Keeps the logits, and of each row the log of its sum."""
        logits = logits.contiguous()
        rows, vocabulary = logits.shape
        chosen, log_sums = (torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(2))
        _forward[(rows,)](logits, targets, chosen, log_sums, 1 / temperature, vocabulary, num_warps=8)
        ctx.save_for_backward(logits, targets, log_sums)
        ctx.temperature = temperature
        return chosen

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:  # noqa: ANN401
        """A chosen token's logit wants more, everybody wants less of what they have."""
        logits, targets, log_sums = ctx.saved_tensors
        rows, vocabulary = logits.shape
        output = torch.empty_like(logits)
        grid, given = (rows, triton.cdiv(vocabulary, BLOCK.value)), gradients[0].contiguous()
        _backward[grid](logits, targets, log_sums, given, output, 1 / ctx.temperature, vocabulary, num_warps=8)
        return output, None, None


@triton.jit
def _forward(
    logits: tl.tensor, targets: tl.tensor, chosen: tl.tensor, log_sums: tl.tensor,
    inverse_temperature: tl.tensor, vocabulary: tl.tensor,
) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    log_sum = log_sum_of(logits, row, inverse_temperature, vocabulary)
    own = tl.load(logits + row * vocabulary + tl.load(targets + row)).to(tl.float32) * inverse_temperature
    tl.store(log_sums + row, log_sum)
    tl.store(chosen + row, own - log_sum)


@triton.jit
def _backward(
    logits: tl.tensor, targets: tl.tensor, log_sums: tl.tensor, gradients: tl.tensor, output: tl.tensor,
    inverse_temperature: tl.tensor, vocabulary: tl.tensor,
) -> None:  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    where = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = where < vocabulary
    logit = tl.load(logits + row * vocabulary + where, mask=inside, other=0.0).to(tl.float32)
    share = tl.exp(logit * inverse_temperature - tl.load(log_sums + row))
    is_chosen = (where == tl.load(targets + row)).to(tl.float32)
    gradient = (is_chosen - share) * tl.load(gradients + row) * inverse_temperature
    tl.store(output + row * vocabulary + where, gradient.to(output.dtype.element_ty), mask=inside)
