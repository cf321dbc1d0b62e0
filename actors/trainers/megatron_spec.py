"""Megatron's decoder layer without Transformer Engine, for where that cannot be built.

slime maps Transformer Engine's parameter names, in which a norm belongs to the linear layer behind it; so the linear
layers here carry one. Sequences come packed, one behind the other without padding, and attention stays within each.
"""

import inspect
from argparse import Namespace
from functools import cache
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.models.common.embeddings import rope_utils
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from torch import Tensor, nn


def get_spec(args: Namespace, config: Any, vp_stage: int | None = None) -> TransformerBlockSubmodules:  # noqa: ANN401
    """The layers of one pipeline stage; `--spec actors.trainers.megatron_spec get_spec` names this to slime."""
    if (parts := config.context_parallel_size) > 1:
        raise ValueError(f"these layers keep each sequence whole, so context_parallel_size must be 1; it is {parts}")
    rope_utils._apply_rotary_pos_emb_thd = rotate_packed
    spec = get_gpt_layer_local_spec(qk_layernorm=args.qk_layernorm, normalization="RMSNorm")
    layer = spec.submodules
    attention, mlp = layer.self_attention.submodules, layer.mlp
    layer.input_layernorm = layer.pre_mlp_layernorm = IdentityOp
    attention.linear_qkv = NormedColumnParallelLinear
    attention.core_attention = PackedAttention
    if args.qk_layernorm:
        attention.q_layernorm = attention.k_layernorm = RmsNorm
    # A partial in newer versions of Megatron, a spec in older ones.
    parts = mlp.keywords["submodules"] if hasattr(mlp, "keywords") else mlp.submodules
    parts.linear_fc1 = NormedColumnParallelLinear
    stage = {} if vp_stage is None else {"vp_stage": vp_stage}
    return TransformerBlockSubmodules([spec] * get_num_layers_to_build(config, **stage), layer_norm=RmsNorm)


def rotate_packed(
    heads: Tensor, starts: Tensor, angles: Tensor, *, rotary_interleaved: bool = False, mscale: float = 1.0,
    cp_group: object = None, **options: object,
) -> Tensor:  # fmt: skip
    """Rotary embedding of packed sequences, [t, heads, d] -> the same, each sequence from its own first position.

    In the place of Megatron's own, which from 0.19 on launches ten kernels and waits for the GPU for each sequence;
    this is bit-equal.
    """
    if wanted := [name for name, value in options.items() if value]:
        raise ValueError(f"this rotary embedding has no {', '.join(wanted)}")
    width = angles.shape[-1]
    cos, sin = _turns(starts, angles, len(heads), mscale, heads.dtype)
    turned = heads if heads.shape[-1] == width else heads[..., :width]
    rotated = turned * cos + rope_utils._rotate_half(turned, rotary_interleaved) * sin
    assert isinstance(rotated, Tensor)
    return rotated if turned is heads else torch.cat((rotated, heads[..., width:]), -1)


def _turns(starts: Tensor, angles: Tensor, length: int, mscale: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """[t, 1, d] cosine and sine of each place in a pack. All layers ask for the same, so the pack keeps them."""
    known = getattr(starts, "turns", None)
    if known is None or known[0] is not angles or known[1] != (mscale, dtype):
        at = torch.arange(length, device=starts.device)
        own = angles[at - starts[torch.searchsorted(starts, at, right=True) - 1]].squeeze(1)
        known = angles, (mscale, dtype), (own.cos() * mscale).to(dtype), (own.sin() * mscale).to(dtype)
        starts.turns = known  # type: ignore[attr-defined]
    return known[2], known[3]


class RmsNorm(nn.Module):
    """Root-mean-square norm that, unlike Megatron's own around torch, also works with sequence parallelism."""

    def __init__(self, config: Any, hidden_size: int, eps: float = 1e-6, **_: Any) -> None:  # noqa: ANN401
        super().__init__()
        self.weight, self._eps = _norm_weight(config, hidden_size), eps

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., h] -> [..., h]."""
        return F.rms_norm(hidden, self.weight.shape, self.weight, self._eps)


class NormedColumnParallelLinear(ColumnParallelLinear):  # type: ignore[misc]
    """A norm and the linear layer behind it. Ranks of a tensor-parallel group hold the same norm and parts of the rest.

    With sequence parallelism each rank norms its part of the sequence before the parts are gathered.
    """

    def __init__(self, input_size: int, output_size: int, *, config: Any, **kwargs: Any) -> None:  # noqa: ANN401
        super().__init__(input_size, output_size, config=config, **kwargs)
        self.layer_norm_weight = _norm_weight(config, input_size)
        self._eps = config.layernorm_epsilon

    def forward(self, input_: Tensor, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        """[s, b, h] -> ([s, b, output / ranks], bias)."""
        normed = F.rms_norm(input_, self.layer_norm_weight.shape, self.layer_norm_weight, self._eps)
        return super().forward(normed, *args, **kwargs)


class PackedAttention(nn.Module):
    """Causal attention within each of the packed sequences; the work grows with each one's length, not the pack's."""

    def __init__(self, config: Any, softmax_scale: float | None = None, **_: Any) -> None:  # noqa: ANN401
        super().__init__()
        self._scale = softmax_scale or config.kv_channels**-0.5

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None,
        packed_seq_params: Any = None, **_: Any,  # noqa: ANN401
    ) -> Tensor:  # fmt: skip
        """[t, heads, d], [t, kv heads, d] twice -> [t, heads x d]."""
        if packed_seq_params is None:
            raise ValueError("this attention takes packed sequences; slime always packs them")
        starts, longest = packed_seq_params.cu_seqlens_q, int(packed_seq_params.max_seqlen_q)
        attend = _flash if query.is_cuda else _by_sequence
        return attend(query, key, value, starts, longest, self._scale).reshape(len(query), -1)


def _flash(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, scale: float) -> Tensor:
    """torch's own packed attention, a flash kernel."""
    from torch.nn.attention.varlen import varlen_attn

    options = _varlen_options()
    if "scale" not in options and abs(scale * query.shape[-1] ** 0.5 - 1) > 1e-6:
        return _by_sequence(query, key, value, starts, longest, scale)
    chosen: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in options else {"is_causal": True}
    if "scale" in options:
        chosen["scale"] = scale
    if "enable_gqa" in options:
        chosen["enable_gqa"] = True
    else:  # it wants as many heads of keys and values as of queries
        times = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(times, 1), value.repeat_interleave(times, 1)
    query, key, value = (each.contiguous() for each in (query, key, value))
    attended = varlen_attn(query, key, value, starts, starts, longest, longest, **chosen)
    assert isinstance(attended, Tensor)
    return attended


@cache
def _varlen_options() -> frozenset[str]:
    """Causality and grouped heads are asked for in another way in each version of torch from 2.10 to 2.12."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def _by_sequence(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, scale: float) -> Tensor:
    """The same, one sequence after the other: on a CPU, and for older versions of torch."""
    bounds = starts.tolist()
    parts = []
    for start, end in pairwise(bounds):
        q, k, v = (each[start:end].transpose(0, 1)[None] for each in (query, key, value))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)
        parts.append(attended[0].transpose(0, 1))
    return torch.cat(parts)


def _norm_weight(config: Any, size: int) -> nn.Parameter:  # noqa: ANN401
    device = "cpu" if config.use_cpu_initialization else torch.cuda.current_device()
    weight = nn.Parameter(torch.ones(size, dtype=config.params_dtype, device=device))
    # Where ranks norm parts of a sequence, Megatron sums the gradients of what is marked so.
    weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]
    return weight
