"""Log-probabilities of a pack's loss tokens, without ever holding the logits of all of them at once."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from actors.kernels import has_kernels
from rlhaiku.packing import PAD_SEGMENT, PROMPT_SEGMENT, Pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS_BYTES = 1 << 30
"""Most fp32 logits at once: 151,936 tokens of vocabulary at 9,000 positions would be 5.5 GB, some of it thrice."""
KERNEL_LOGITS_BYTES = 2 << 30
"""Most bf16 logits at once where a kernel reads them: there is one copy, and one of their gradient."""

Layers = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Token, position and segment ids [R, L] to last hidden states [R, L, H]."""


def pack_logprobs(model: "PreTrainedModel", pack: Pack, temperature: float, layers: Layers | None = None) -> Tensor:
    """[N] log-probabilities of a pack's loss tokens, fp32; logits are made only at the positions that need them.

    `layers`: the model's own, prepared somehow.
    """

    def there(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(model.device, non_blocking=True)

    layers = layers or partial(forward_layers, model)
    hidden = layers(there(pack.token_ids), there(pack.position_ids), there(pack.segment_ids))
    predicting = hidden[there(pack.target_rows), there(pack.predictor_columns)]
    return chosen_logprobs(model.get_output_embeddings(), predicting, there(pack.targets), temperature)


def forward_layers(model: "PreTrainedModel", token_ids: Tensor, position_ids: Tensor, segment_ids: Tensor) -> Tensor:
    """[R, L, H] last hidden states of a pack; each argument but the model is [R, L]."""
    allowed = attention_allowed(segment_ids)[:, None]
    hidden: Tensor = model.base_model(
        input_ids=token_ids, attention_mask=allowed, position_ids=position_ids, use_cache=False
    ).last_hidden_state
    return hidden


def attention_allowed(segment_ids: Tensor) -> Tensor:
    """[R, L, L] which column (last axis) each position may look at, from [R, L]; a pad position sees only itself."""
    length = segment_ids.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segment_ids.device).tril()
    query, key = segment_ids[:, :, None], segment_ids[:, None, :]
    visible = causal & ((key == PROMPT_SEGMENT) | (key == query)) & (key != PAD_SEGMENT) & (query != PAD_SEGMENT)
    # A row of the mask without any True would make softmax produce NaN.
    return visible | torch.eye(length, dtype=torch.bool, device=segment_ids.device)


def chosen_logprobs(
    head: nn.Module, hidden: Tensor, targets: Tensor, temperature: float, max_bytes: int | None = None
) -> Tensor:
    """[N] log-softmax of `head(hidden)` at `targets`; hidden [N, H], targets [N].

    Where the logits would need more than `max_bytes`, by default `LOGITS_BYTES`, or `KERNEL_LOGITS_BYTES` with a
    kernel, they are made chunk by chunk, and again in the backward pass.
    """
    vocabulary: int = head.get_parameter("weight").shape[0]
    if has_kernels():
        rows = max(1, (max_bytes or KERNEL_LOGITS_BYTES) // (hidden.element_size() * vocabulary))
    else:
        rows = max(1, (max_bytes or LOGITS_BYTES) // (4 * vocabulary))
    if len(hidden) <= rows:
        return _chosen(head, hidden, targets, temperature)
    chunks = [
        checkpoint(_chosen, head, some, their_targets, temperature, use_reentrant=False)
        for some, their_targets in zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    ]
    return torch.cat(chunks)


def _chosen(head: nn.Module, hidden: Tensor, targets: Tensor, temperature: float) -> Tensor:
    if has_kernels() and hidden.is_cuda:
        from actors.trainers.logprob_kernel import ChosenLogprobs

        result: Tensor = ChosenLogprobs.apply(head(hidden), targets, temperature)  # type: ignore[no-untyped-call]
        return result
    logits = head(hidden).float()
    if temperature != 1:
        logits = logits / temperature
    chosen: Tensor = logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    return chosen
