"""The Triton kernels against torch in fp32; on a GPU, or anywhere by Triton's interpreter: TRITON_INTERPRET=1."""

import os

import pytest
import torch
from transformers import AttentionInterface, AutoModelForCausalLM

from actors.engines import graph_decoding
from actors.engines.decoding import sample
from actors.gpu_model import to_bf16
from tests.tiny import make_request, save_tiny_model

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
HALF = torch.float16 if INTERPRETED else torch.bfloat16
"""The interpreter multiplies bf16 as if it were integers."""
pytestmark = [] if INTERPRETED else pytest.mark.gpu


def attention_of(groups, size, kv_heads, repeat, length, tokens, width, newest, dtype):
    """Query, prompts and own past of so many groups, prompts padded on the left by different amounts."""
    generator = torch.Generator().manual_seed(groups * 100 + size + length)
    rows = groups * size

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    mask = torch.ones(groups, length, dtype=torch.bool)
    for group in range(groups):
        mask[group, : (group * 19) % length] = False
    prompts = random(groups, kv_heads, length, width), random(groups, kv_heads, length, width), mask.to(DEVICE)
    own = random(rows, kv_heads, tokens, width), random(rows, kv_heads, tokens, width)
    for each in own:
        each[:, :, newest + 1 :] = float("nan")  # places nobody has written: must not be read
    query = random(rows, 1, kv_heads * repeat, width).transpose(1, 2)
    return query, prompts, (*own, torch.tensor([newest], device=DEVICE))


def expected(query, prompts, own, scaling):
    """Row by row and head by head, in fp64."""
    (prompt_keys, prompt_values, mask), (keys, values, newest) = prompts, own
    rows, heads, _, width = query.shape
    groups, kv_heads = prompt_keys.shape[:2]
    output = torch.empty(rows, 1, heads, width, dtype=torch.float64)
    for row in range(rows):
        group = row * groups // rows
        for head in range(heads):
            kv = head * kv_heads // heads
            seen = slice(None, int(newest) + 1)
            key = torch.cat([prompt_keys[group, kv][mask[group]], keys[row, kv, seen]]).double()
            value = torch.cat([prompt_values[group, kv][mask[group]], values[row, kv, seen]]).double()
            weights = (key @ query[row, head, 0].double() * scaling).softmax(0)
            output[row, 0, head] = (weights @ value).cpu()
    return output


@pytest.mark.parametrize("shape", [
    (3, 8, 2, 4, 48, 30, 64, 0), (3, 8, 2, 4, 48, 30, 64, 29), (2, 4, 1, 3, 16, 70, 32, 40),
    (5, 1, 2, 2, 96, 12, 16, 5), (1, 16, 1, 8, 32, 5, 128, 3),
])
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
def test_group_attention(shape, dtype):
    kernel = pytest.importorskip("actors.engines.group_kernel")
    query, prompts, own = attention_of(*shape, dtype)
    assert kernel.fits(query, own[0], shape[0])
    found = kernel.attend(query, prompts, own, 0.1).double().cpu()
    wanted = expected(query, prompts, own, 0.1)
    error = (found - wanted).norm() / wanted.norm()
    assert error < (1e-5 if dtype == torch.float32 else 6e-3), error


def test_shapes_the_kernel_leaves_to_torch():
    kernel = pytest.importorskip("actors.engines.group_kernel")
    own = torch.zeros(64, 2, 4, 48, device=DEVICE)
    assert not kernel.fits(torch.zeros(64, 4, 1, 48, device=DEVICE), own, 8)
    own = torch.zeros(64, 1, 4, 64, device=DEVICE)
    assert not kernel.fits(torch.zeros(64, 4, 1, 64, device=DEVICE), own, 1)


@pytest.mark.parametrize(("rows", "vocabulary", "temperature"), [(7, 5000, 1.0), (3, 4096, 0.7), (2, 100, 1.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chosen_logprobs_and_their_gradient(rows, vocabulary, temperature, dtype):
    kernel = pytest.importorskip("actors.trainers.logprob_kernel")
    generator = torch.Generator().manual_seed(rows)
    logits = (4 * torch.randn(rows, vocabulary, generator=generator)).to(DEVICE, dtype).requires_grad_()
    targets = torch.randint(vocabulary, (rows,), generator=generator).to(DEVICE)
    weights = torch.randn(rows, generator=generator).to(DEVICE)
    twin = logits.detach().double().requires_grad_()
    wanted = (twin / temperature).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    (wanted * weights).sum().backward()
    found = kernel.ChosenLogprobs.apply(logits, targets, temperature)
    (found * weights).sum().backward()
    assert torch.allclose(found.double(), wanted, atol=2e-5)
    error = (logits.grad.double() - twin.grad).norm() / twin.grad.norm()
    assert error < (1e-5 if dtype == torch.float32 else 8e-3), error


@pytest.mark.parametrize(("vocabulary", "temperature"), [(9000, 1.0), (4096, 0.7), (100, 1.3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drawn_tokens_and_their_logprobs(vocabulary, temperature, dtype):
    """Draws on an even grid: each token is drawn as often as its probability says, and by the same draws as in torch.
    """
    kernel = pytest.importorskip("actors.engines.sample_kernel")
    generator, rows = torch.Generator().manual_seed(vocabulary), 64
    logits = (3 * torch.randn(vocabulary, generator=generator)).to(DEVICE, dtype).repeat(rows, 1)
    draws = (torch.arange(rows, dtype=torch.float64, device=DEVICE) + 0.5) / rows
    tokens, logprobs = kernel.draw(logits, temperature, draws)
    expected = (logits[0].double() / temperature).log_softmax(-1)
    reached = expected.exp().cumsum(-1)
    assert torch.allclose(logprobs.double(), expected[tokens], atol=2e-5)
    assert ((reached[tokens] > draws - 1e-5) & (reached[tokens] - expected[tokens].exp() < draws + 1e-5)).all()
    same, _ = sample(logits, temperature, draws)
    assert (tokens == same).float().mean() > 0.95


def test_draws_at_the_ends():
    """The first of 0 is the first token that has any probability; one no sum reaches gets the likeliest token."""
    kernel = pytest.importorskip("actors.engines.sample_kernel")
    logits = torch.full((2, 5000), -torch.inf, device=DEVICE)
    logits[:, 4200:4203] = torch.tensor([0.0, 2.0, 1.0], device=DEVICE)
    tokens, logprobs = kernel.draw(logits, 1.0, torch.tensor([0.0, 1.5], dtype=torch.float64, device=DEVICE))
    assert tokens.tolist() == [4200, 4201]
    assert torch.allclose(logprobs.cpu(), torch.tensor([0.0, 2.0, 1.0]).log_softmax(-1)[:2], atol=1e-6)


@pytest.mark.skipif(not INTERPRETED, reason="a check of every step cannot be part of a CUDA graph")
def test_attention_while_a_tile_is_decoded(monkeypatch, tmp_path):
    kernel = pytest.importorskip("actors.engines.group_kernel")
    checked = []

    def both(module, query, key, value, mask, *, scaling, groups, **kwargs):
        wanted, _ = graph_decoding.group_attention(
            module, query, key, value, mask, scaling=scaling, groups=groups, **kwargs
        )
        if not groups.is_prompt:
            prompts = (*groups.prompts[:, module.layer_idx], groups.prompt_mask)
            found = kernel.attend(query, prompts, (key, value, groups.column), scaling)
            assert torch.allclose(found, wanted, atol=1e-5)
            checked.append(found)
        return wanted, None

    monkeypatch.setitem(AttentionInterface._global_mapping, graph_decoding.ATTENTION, both)
    asked = [make_request(claim, max_tokens=6) for claim in range(3)]
    decoder(save_tiny_model(tmp_path)).decode(asked)
    assert len(checked) == 2 * 5  # layers x tokens after the first


@pytest.mark.skipif(INTERPRETED, reason="needs a CUDA graph")
def test_a_tile_decodes_alike_with_and_without_the_kernel(monkeypatch, tmp_path):
    path = save_tiny_model(tmp_path)
    asked = [make_request(claim, max_tokens=20, temperature=0.0) for claim in range(6)]
    found = []
    for is_used in (True, False):
        monkeypatch.setattr(graph_decoding, "has_kernels", lambda is_used=is_used: is_used)
        found.append([row for group in decoder(path).decode(asked) for row in group])
    gaps = [abs(a.logprobs[-1] - b.logprobs[-1]) for a, b in zip(*found, strict=True) if a.token_ids == b.token_ids]
    assert gaps and sum(gaps) / len(gaps) < 0.02
    assert sum(a.token_ids == b.token_ids for a, b in zip(*found, strict=True)) > len(found[0]) / 2


def decoder(path):
    dtype = torch.float32 if INTERPRETED else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval().to(DEVICE)
    return graph_decoding.GraphDecoder(model if INTERPRETED else to_bf16(model), [2], 0)
