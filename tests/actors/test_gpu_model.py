"""Fused layers compute what `transformers` computes: on a CPU as a matter of course, on a GPU by Liger's kernels."""

import copy
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config
from transformers.models.llama import modeling_llama
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

from actors import gpu_model, kernels
from actors.gpu_model import fuse_layers

SIZE = {
    "hidden_size": 192, "intermediate_size": 320, "num_hidden_layers": 2, "num_attention_heads": 3,
    "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 100,
}  # fmt: skip
KINDS = pytest.mark.parametrize("kind", [Qwen3Config, Qwen2Config, LlamaConfig])


@pytest.fixture
def rotations(monkeypatch):
    """Models rotate as transformers has it, until layers are fused; afterwards as they did before."""
    for code in (modeling_llama, modeling_qwen2, modeling_qwen3):
        plain = code.apply_rotary_pos_emb
        monkeypatch.setattr(code, "apply_rotary_pos_emb", plain.args[0] if isinstance(plain, partial) else plain)


@pytest.fixture
def liger(rotations, monkeypatch):
    """As if Liger's kernels were installed."""
    monkeypatch.setattr(gpu_model, "has_liger", lambda: True)


def make(kind, **more):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(kind(**SIZE, **more)).eval()


def outcome(model):
    """Logits, and every parameter's gradient, of rows that begin at different positions."""
    device = model.device
    token_ids = torch.arange(40, device=device).view(2, 20) * 7 % 100
    positions = torch.arange(20, device=device) + torch.tensor([[0], [5]], device=device)
    logits = model(input_ids=token_ids, position_ids=positions).logits
    logits.float().log_softmax(-1)[..., 3].sum().backward()
    return {"logits": logits.detach().float().cpu()} | {n: p.grad.float().cpu() for n, p in model.named_parameters()}


def largest_error(found, wanted):
    return max(((found[n] - wanted[n]).norm() / wanted[n].norm()).item() for n in wanted)


@KINDS
def test_fused_layers_on_a_cpu(liger, kind):
    model = make(kind)
    wanted = outcome(copy.deepcopy(model))
    fused = fuse_layers(fuse_layers(copy.deepcopy(model)))  # a second time changes nothing
    assert largest_error(outcome(fused), wanted) < 1e-5
    assert largest_error(outcome(model), wanted) < 1e-5  # nor has anything happened to its neighbour


@pytest.mark.parametrize(("activation", "times"), [("silu", 2 * SIZE["num_hidden_layers"]), ("gelu", 0)])
def test_models_with_other_activations_are_left_alone(liger, monkeypatch, activation, times):
    model = make(Qwen3Config, hidden_act=activation)
    wanted = outcome(copy.deepcopy(model))
    asked = []
    monkeypatch.setattr(gpu_model, "_is_for_liger", lambda tensor: asked.append(tensor))  # and it is not
    assert largest_error(outcome(fuse_layers(model)), wanted) < 1e-5
    assert len(asked) == times


@pytest.mark.gpu
@KINDS
def test_fused_layers_on_a_gpu(monkeypatch, rotations, kind):
    """Liger's bf16 is as near to fp32 as that of `transformers`."""
    pytest.importorskip("liger_kernel")
    if not gpu_model.has_liger():
        pytest.skip("kernels are switched off, or there is no C compiler")
    exact = make(kind)
    plain, fused = (copy.deepcopy(exact).to("cuda", torch.bfloat16) for _ in range(2))
    wanted = outcome(exact)
    gap = largest_error(outcome(plain), wanted)
    asked = []
    monkeypatch.setattr(gpu_model, "_is_for_liger", lambda tensor: not asked.append(tensor))
    fuse_layers(fused)
    assert largest_error(outcome(fused), wanted) < 1.2 * gap + 1e-3
    assert len(asked) == 2 * SIZE["num_hidden_layers"]  # an MLP and a rotation each


@pytest.mark.parametrize(("wanted", "compiler", "hip", "used"), [
    (None, "/usr/bin/cc", None, True), ("1", "/usr/bin/cc", None, True), ("0", "/usr/bin/cc", None, False),
    (None, None, None, False), (None, "/usr/bin/cc", "6.0", False),
])
def test_kernels_are_used_where_they_can_be_unless_they_are_not_wanted(monkeypatch, wanted, compiler, hip, used):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("RLHAIKU_KERNELS", raising=False)
    if wanted is not None:
        monkeypatch.setenv("RLHAIKU_KERNELS", wanted)
    monkeypatch.setattr(kernels.shutil, "which", lambda name: compiler)
    monkeypatch.setattr(kernels, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.version, "hip", hip, raising=False)
    assert kernels.has_kernels.__wrapped__() is used
