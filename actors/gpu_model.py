"""How a model of `transformers` runs on a GPU, alike for the trainer and for engines, so that both compute the same."""

import sys
from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from actors.kernels import has_kernels

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Rotary = Callable[..., tuple[Tensor, Tensor]]
LIGER_MODELS = frozenset({"llama", "qwen2", "qwen3"})
"""Kinds of models whose rotary embeddings turn whole heads, and whose MLPs are down(silu(gate) * up)."""


def to_bf16(model: "PreTrainedModel") -> "PreTrainedModel":
    """Turns parameters into bf16 (buffers, such as rotary frequencies, stay fp32) and fuses layers."""
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return fuse_layers(model)


def fuse_layers(model: "PreTrainedModel") -> "PreTrainedModel":
    """Has one kernel make what `transformers` makes of a dozen around a layer's matrix products, and all their passes
    over memory: RMS norms by torch; where Liger's kernels are installed rotary embeddings and the inside of MLPs too.
    """
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(_rms_norm, module)
    if has_liger() and model.config.model_type in LIGER_MODELS and model.config.hidden_act == "silu":
        _use_liger(model)
    return model


@cache
def has_liger() -> bool:
    """Whether Liger's kernels are there, and any kernels are wanted."""
    return has_kernels() and find_spec("liger_kernel") is not None


def _use_liger(model: "PreTrainedModel") -> None:
    """Has Liger compute MLPs and rotary embeddings, on GPUs: its own patches are for all models of a kind in a process.
    """
    for module in model.modules():
        name = type(module).__name__
        if name.endswith("MLP"):
            module.forward = partial(_gated_mlp, module)
        elif name.endswith("Attention"):
            # Attention finds it as a global name; the replacement asks at every call where its tensors are.
            code = sys.modules[type(module).__module__]
            plain = getattr(code, "apply_rotary_pos_emb", None)
            if plain is not None and not isinstance(plain, partial):
                code.apply_rotary_pos_emb = partial(_rotate, plain)  # type: ignore[attr-defined]


def _is_for_liger(tensor: Tensor) -> bool:
    """A compiler of layers fuses by itself."""
    return tensor.is_cuda and not torch.compiler.is_compiling()


def _rms_norm(module: nn.Module, hidden: Tensor) -> Tensor:
    return functional.rms_norm(hidden, hidden.shape[-1:], module.weight, module.variance_epsilon)  # type: ignore[arg-type]


def _gated_mlp(module: nn.Module, hidden: Tensor) -> Tensor:
    """[..., H] -> [..., H]."""
    if not _is_for_liger(hidden):
        return type(module).forward(module, hidden)  # type: ignore[no-any-return]
    from liger_kernel.transformers.functional import liger_swiglu

    output: Tensor = module.down_proj(  # type: ignore[operator]
        liger_swiglu(module.gate_proj(hidden), module.up_proj(hidden))  # type: ignore[operator]
    )
    return output


def _rotate(plain: Rotary, query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Query [R, heads, T, D] and key [R, kv_heads, T, D] by angles of cosine and sine [R, T, D]."""
    if not _is_for_liger(query):
        return plain(query, key, cos, sin)
    from liger_kernel.transformers.functional import liger_rope

    # As one row: the kernel is compiled anew for every number of rows. It writes where query and key are.
    rows, _, tokens, width = query.shape
    flat = (each.transpose(1, 2).reshape(1, rows * tokens, -1, width).transpose(1, 2) for each in (query, key))
    turned = liger_rope(*flat, *(each.expand(rows, -1, -1).reshape(1, rows * tokens, -1) for each in (cos, sin)))
    shape = rows, tokens, -1, width
    query, key = (each.transpose(1, 2).view(shape).transpose(1, 2) for each in turned)
    return query, key
