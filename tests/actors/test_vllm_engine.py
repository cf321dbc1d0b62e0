"""What of the vLLM engine can be seen without a GPU; benchmarks/gpu/first_contact.py runs the engine itself."""

from typing import ClassVar

import pytest
import torch
from torch import nn
from transformers import Qwen3Config

from actors.engines import vllm_engine
from actors.engines.vllm_engine import VllmEngine, capture_sizes, checkpoint_views, group_seed, kv_cache_bytes
from actors.weight_slots import checksum
from rlhaiku.errors import WeightMismatch
from tests.tiny import make_request

SHAPES = {
    "model.embed_tokens.weight": (10, 4), "layer.q_proj.weight": (4, 4), "layer.k_proj.weight": (2, 4),
    "layer.v_proj.weight": (2, 4), "layer.q_proj.bias": (4,), "layer.k_proj.bias": (2,), "layer.v_proj.bias": (2,),
    "layer.o_proj.weight": (4, 4), "norm.weight": (4,),
}
CHECKPOINT = {name: torch.Size(shape) for name, shape in SHAPES.items()}


class Fused(nn.Module):
    """A model as vLLM lays it out: q, k and v in one matrix, the vocabulary padded."""

    packed_modules_mapping: ClassVar = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}

    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(16, 4)
        self.layer = nn.Module()
        self.layer.qkv_proj = nn.Linear(4, 8)
        self.layer.o_proj = nn.Linear(4, 4, bias=False)
        self.norm = nn.RMSNorm(4)


def test_fused_weights_are_written_and_read_under_their_names_in_a_checkpoint():
    torch.manual_seed(0)
    model = Fused()
    sent = {name: torch.randn(shape) for name, shape in CHECKPOINT.items()}
    views = checkpoint_views(model, CHECKPOINT)
    for name, view in views.items():
        view.copy_(sent[name])
    expected = torch.cat([sent[f"layer.{part}_proj.weight"] for part in "qkv"])
    assert torch.equal(model.layer.qkv_proj.weight, expected)
    assert torch.equal(model.model.embed_tokens.weight[:10], sent["model.embed_tokens.weight"])
    assert checksum(views[name] for name in sent) == checksum(sent.values())


def test_the_whole_batch_has_a_graph_and_few_sizes_do():
    assert capture_sizes(256) == [1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256]
    assert capture_sizes(100)[-2:] == [96, 100] and capture_sizes(1) == [1] and capture_sizes(2048)[-2:] == [1024, 2048]


def test_views_are_cut_once(monkeypatch):
    engine, cut = VllmEngine.__new__(VllmEngine), []
    engine._views, engine._model = {}, Fused()
    monkeypatch.setattr(vllm_engine, "checkpoint_views", lambda model, shapes: cut.append(model) or {"a": model})
    assert engine._own(CHECKPOINT) is engine._own(CHECKPOINT) and len(cut) == 1


def test_a_weight_without_a_place_is_named():
    with pytest.raises(WeightMismatch, match=r"1 have none, e\.g\. lm_head\.weight"):
        checkpoint_views(Fused(), CHECKPOINT | {"lm_head.weight": torch.Size((10, 4))})
    with pytest.raises(WeightMismatch, match=r"norm\.weight"):
        checkpoint_views(Fused(), CHECKPOINT | {"norm.weight": torch.Size((5,))})


def test_a_group_is_drawn_again_with_its_own_seed():
    seed = group_seed(0, make_request(3))
    assert seed == group_seed(0, make_request(3))
    assert len({seed, group_seed(1, make_request(3)), group_seed(0, make_request(3, "dog"))}) == 3
    assert 0 <= seed < 2**48


def test_key_value_cache_of_qwen3_4b():
    config = Qwen3Config(num_hidden_layers=36, num_key_value_heads=8, head_dim=128)
    assert kv_cache_bytes(config, 1) == 147_456

