"""slime's name maps there and back on a small Qwen3: every tensor of the checkpoint, once, bit for bit."""

from argparse import Namespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from tests.tiny import save_tiny_model

pytestmark = [pytest.mark.slime, pytest.mark.filterwarnings("ignore")]

LAYER = (
    "self_attention.linear_qkv.weight", "self_attention.linear_qkv.layer_norm_weight",
    "self_attention.linear_proj.weight", "self_attention.q_layernorm.weight", "self_attention.k_layernorm.weight",
    "mlp.linear_fc1.weight", "mlp.linear_fc1.layer_norm_weight", "mlp.linear_fc2.weight",
)  # fmt: skip
"""A layer as Transformer Engine names its parameters, and so must the layers without it."""


def megatron_names(num_layers):
    yield from ("embedding.word_embeddings.weight", "decoder.final_layernorm.weight")
    yield from (f"decoder.layers.{layer}.{name}" for layer in range(num_layers) for name in LAYER)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def test_every_tensor_there_and_back(model):
    from slime.backends.megatron_utils.hf_to_megatron.common import SafetensorReader
    from slime.backends.megatron_utils.hf_to_megatron.qwen import qwen_hf_tensor
    from slime.backends.megatron_utils.megatron_to_hf import convert_to_hf

    config, reader = AutoConfig.from_pretrained(model), SafetensorReader(model)
    args = Namespace(
        vocab_size=config.vocab_size, kv_channels=config.head_dim, num_attention_heads=config.num_attention_heads,
        num_query_groups=config.num_key_value_heads, hidden_size=config.hidden_size, q_lora_rank=None,
    )
    back = {}
    for name in megatron_names(config.num_hidden_layers):
        tensor = qwen_hf_tensor(name, reader, config)
        for hf_name, part in convert_to_hf(args, type(config).__name__.lower(), f"module.module.{name}", tensor):
            assert hf_name not in back
            back[hf_name] = part
    original = load_file(model / "model.safetensors")
    assert back.keys() == original.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in original.items())


def test_the_bundled_and_published_kinds_of_model_can_be_loaded(model):
    from slime.backends.megatron_utils.hf_to_megatron import supports_hf_weight_loading

    assert supports_hf_weight_loading(model)


@pytest.mark.parametrize("name", ["input_layernorm.weight", "self_attention.linear_qkv._extra_state"])
def test_megatrons_own_local_names_are_not_mapped(model, name):
    """Why a layer without Transformer Engine must keep its norms inside the linear layers."""
    from slime.backends.megatron_utils.hf_to_megatron.common import SafetensorReader
    from slime.backends.megatron_utils.hf_to_megatron.qwen import qwen_hf_tensor

    with pytest.raises(KeyError):
        qwen_hf_tensor(f"decoder.layers.0.{name}", SafetensorReader(model), AutoConfig.from_pretrained(model))
