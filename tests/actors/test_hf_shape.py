"""Megatron's shape flags from a Hugging Face configuration."""

import json

import pytest

from actors.trainers.hf_shape import shape_flags
from rlhaiku.errors import BadInput
from tests.actors.qwen3_shapes import QWEN3


def shape(directory, config):
    (directory / "config.json").write_text(json.dumps(config))
    return shape_flags(directory)


@pytest.mark.parametrize(("name", "hidden", "ffn", "layers", "heads", "base", "untied"), [
    ("qwen3-0.6B", 1024, 3072, 28, 16, 1_000_000, False),
    ("qwen3-4B", 2560, 9728, 36, 32, 1_000_000, False),
    ("qwen3-4B-Instruct-2507", 2560, 9728, 36, 32, 5_000_000, False),
    ("qwen3-8B", 4096, 12288, 36, 32, 1_000_000, True),
])
def test_published_models(tmp_path, name, hidden, ffn, layers, heads, base, untied):
    assert shape(tmp_path, QWEN3[name]) == {
        "num-layers": layers, "hidden-size": hidden, "ffn-hidden-size": ffn, "num-attention-heads": heads,
        "group-query-attention": True, "num-query-groups": 8, "kv-channels": 128, "vocab-size": 151936,
        "position-embedding-type": "rope", "rotary-base": base, "normalization": "RMSNorm", "norm-epsilon": 1e-6,
        "swiglu": True, "disable-bias-linear": True, "untie-embeddings-and-output-weights": untied,
        "qk-layernorm": True,
    }  # fmt: skip


def test_newer_configurations_keep_the_rotary_base_elsewhere(tmp_path):
    config = {key: value for key, value in QWEN3["qwen3-4B"].items() if key not in ("rope_theta", "rope_scaling")}
    config["rope_parameters"] = {"rope_theta": 5000000.0, "rope_type": "default"}
    assert shape(tmp_path, config)["rotary-base"] == 5000000


def test_a_model_with_biased_queries(tmp_path):
    config = {key: value for key, value in QWEN3["qwen3-4B"].items() if key != "head_dim"} | {"model_type": "qwen2"}
    flags = shape(tmp_path, config)
    assert flags["add-qkv-bias"] is True and "qk-layernorm" not in flags and flags["kv-channels"] == 2560 // 32


@pytest.mark.parametrize("change", [
    {"model_type": "mamba"}, {"rope_theta": None}, {"rope_theta": 10000.5},
    {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
])
def test_what_it_cannot_say_it_refuses(tmp_path, change):
    with pytest.raises(BadInput):
        shape(tmp_path, QWEN3["qwen3-4B"] | change)


def test_a_hub_id_is_not_a_directory():
    with pytest.raises(BadInput, match="local directory"):
        shape_flags("Qwen/Qwen3-4B")
