"""How a model of `transformers` runs on a GPU, alike for the trainer and for engines, so that both compute the same."""

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def to_bf16(model: "PreTrainedModel") -> "PreTrainedModel":
    """Turns parameters into bf16 (buffers, such as rotary frequencies, stay fp32) and fuses RMS norms."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return fuse_norms(model)


def fuse_norms(model: "PreTrainedModel") -> "PreTrainedModel":
    """Has RMS norms made by one kernel each."""
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(_rms_norm, module)
    return model


def _rms_norm(module: nn.Module, hidden: Tensor) -> Tensor:
    """One kernel in place of the six that `transformers` launches, which cost a third of a layer's time."""
    return functional.rms_norm(hidden, hidden.shape[-1:], module.weight, module.variance_epsilon)  # type: ignore[arg-type]
