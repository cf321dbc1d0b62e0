"""The shape of a model in Megatron's flags, read from a Hugging Face `config.json`.

slime compares most of these with the Hugging Face configuration when it parses them, but not all: a wrong head size or
a missing query norm would train another model.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhaiku.errors import BadInput

Flags = dict[str, object]
"""Flag without dashes -> value; True is a bare flag, None and False are left out, a tuple is several values."""

ATTENTION: Mapping[str, Flags] = {
    "qwen3": {"qk-layernorm": True},
    "qwen2": {"add-qkv-bias": True},
    "llama": {},
}
"""Model types this knows: RMSNorm, SwiGLU, rotary embeddings, no biases but where said."""


def shape_flags(model_path: str | Path) -> Flags:
    """Megatron's flags for the model in a local Hugging Face directory; raises BadInput where it cannot be said."""
    file = Path(model_path) / "config.json"
    if not file.is_file():
        raise BadInput("the Megatron trainer reads its model from a local directory", str(model_path), "Download it.")
    config = json.loads(file.read_text(encoding="utf-8"))
    kind = config.get("model_type")
    if kind not in ATTENTION:
        known = ", ".join(ATTENTION)
        raise BadInput("the Megatron trainer knows the shapes of some model types", kind, f"Known: {known}.")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    return {
        "num-layers": config["num_hidden_layers"],
        "hidden-size": hidden,
        "ffn-hidden-size": config["intermediate_size"],
        "num-attention-heads": heads,
        "group-query-attention": True,
        "num-query-groups": config.get("num_key_value_heads") or heads,
        "kv-channels": config.get("head_dim") or hidden // heads,
        "vocab-size": config["vocab_size"],
        "position-embedding-type": "rope",
        "rotary-base": _rotary_base(config),
        "normalization": "RMSNorm",
        "norm-epsilon": config["rms_norm_eps"],
        "swiglu": True,
        "disable-bias-linear": True,
        "untie-embeddings-and-output-weights": not config.get("tie_word_embeddings", False),
        **ATTENTION[kind],
    }


def _rotary_base(config: Mapping[str, Any]) -> int:
    """Newer configurations keep it under `rope_parameters`, older ones at the top; Megatron takes whole numbers."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaling = rope.get("rope_type", rope.get("type", "default"))
    if scaling != "default":
        raise BadInput("the Megatron trainer knows plain rotary embeddings", scaling, "Choose a model without scaling.")
    base = rope.get("rope_theta", config.get("rope_theta"))
    if base is None or base != int(base):
        raise BadInput("config.json must say rope_theta, a whole number", base, "See the model's own card.")
    return int(base)
