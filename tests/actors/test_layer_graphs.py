"""When a policy's layers are prepared for a shape, and that nothing else changes; CUDA graphs are played by hand."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from actors.trainers import layer_graphs
from actors.trainers.forward import forward_layers, pack_logprobs
from actors.trainers.layer_graphs import PreparedLayers
from actors.trainers.policy import _hand_over, load_policy
from rlhaiku.batching import make_batch
from rlhaiku.config import AlgorithmConfig
from rlhaiku.packing import pack_groups
from tests.tiny import make_scored, save_tiny_model


class ByHand:
    """A pair of CUDA graphs: they read and write fixed places, whatever else has been computed."""

    def __init__(self, model, weights, inputs, pool):
        self.inputs, self.pool, self.given = [torch.zeros_like(each) for each in inputs], object(), pool
        self._model, self._weights = model, weights
        self.hidden = forward_layers(model, *inputs).detach()
        self.gradient = torch.empty_like(self.hidden)
        self.forward = SimpleNamespace(replay=self._forward)
        self.backward = SimpleNamespace(replay=self._backward)
        self.replays = 0

    def _forward(self):
        self.replays += 1
        with torch.enable_grad():
            self._kept = forward_layers(self._model, *self.inputs)
        self.hidden.copy_(self._kept.detach())

    def _backward(self):
        layer_graphs._add_gradients(self._kept, self.gradient, list(self._model.parameters()), self._weights)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request, tmp_path):
    """With the embedding as its head, and with a head of its own, which the layers do not use."""
    found = load_policy(str(save_tiny_model(tmp_path)))
    if not request.param:
        torch.manual_seed(0)
        head = nn.Linear(found.config.hidden_size, found.config.vocab_size, bias=False)
        found.lm_head = head
    return found


@pytest.fixture
def layers(model, monkeypatch):
    """Prepared ones, over weights that take the model's gradients and have some; `made` has every pair of graphs."""
    weights = [nn.Parameter(own.detach().clone()) for own in model.parameters()]
    for own, weight in zip(model.parameters(), weights, strict=True):
        own.register_post_accumulate_grad_hook(partial(_hand_over, weight))
        weight.grad = torch.zeros_like(weight)
    made = []
    monkeypatch.setattr(layer_graphs, "_Graphs", lambda *given: made.append(ByHand(*given)) or made[-1])
    memory = {"memory_allocated": 3_000, "max_memory_allocated": 10_000, "memory_reserved": 11_000}
    for name in memory:
        monkeypatch.setattr(torch.cuda, name, lambda name=name: memory[name])
    memory["free"] = 1 << 30
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (memory["free"], 1 << 40))
    return SimpleNamespace(prepared=PreparedLayers(model, weights), weights=weights, made=made, memory=memory)


def packs(*claims):
    scored = [make_scored(claim, [0.0, 1.0, 0.25, 0.5]) for claim in claims]
    return list(pack_groups(make_batch(0, scored, AlgorithmConfig(), 1.0).batch.groups, 80, True, columns=8))


def gradients(model, layers, some, prepared):
    """Of each weight, from all packs, and their logprobs."""
    for weight in layers.weights:
        if weight.grad is not None:
            weight.grad.zero_()
    found = []
    for pack in some:
        logprobs = pack_logprobs(model, pack, 1.0, prepared)
        (logprobs * torch.from_numpy(pack.advantages)).sum().backward()
        found.append(logprobs.detach())
    return torch.cat(found), [weight.grad.clone() for weight in layers.weights]


def test_prepared_layers_give_what_the_model_gives(model, layers):
    one, other = packs(0, 1), packs(2, 3, 4)
    assert {each.token_ids.shape for each in one}.isdisjoint(each.token_ids.shape for each in other)
    for _ in range(6):
        for some in (one, other):
            logprobs, found = gradients(model, layers, some, layers.prepared)
            expected_logprobs, expected = gradients(model, layers, some, None)
            torch.testing.assert_close(logprobs, expected_logprobs)
            for gradient, wanted in zip(found, expected, strict=True):
                torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-5)
    assert len(layers.made) == len({each.token_ids.shape for each in one + other})
    assert all(each.replays >= 3 for each in layers.made)


def test_graphs_read_the_tokens_of_the_pack(model, layers):
    first, second = packs(0)[0], packs(60)[0]
    assert first.token_ids.shape == second.token_ids.shape
    assert not (first.token_ids == second.token_ids).all()
    for pack in [first] * 3 + [second]:
        found = pack_logprobs(model, pack, 1.0, layers.prepared)
    assert layers.made[0].replays == 2
    torch.testing.assert_close(found, pack_logprobs(model, second, 1.0))


def test_a_graph_is_made_when_a_shape_comes_for_the_third_time(model, layers):
    (pack,) = packs(0)
    made = []
    for _ in range(5):
        pack_logprobs(model, pack, 1.0, layers.prepared)
        made.append(len(layers.made))
    assert made == [0, 0, 1, 1, 1]


@pytest.mark.parametrize(("small", "expected"), [(0, [False, True, True]), (1e9, [False, False, False])])
def test_cudnn_prepares_itself_for_shapes_that_come_again_and_for_no_small_model(
    model, layers, monkeypatch, small, expected
):
    monkeypatch.setattr(layer_graphs, "SMALL_MODEL", small)
    prepared = PreparedLayers(model, layers.weights)
    assert prepared.columns == (layer_graphs.SMALL_MODELS_COLUMNS if small else layer_graphs.COLUMNS)
    chosen = []

    def noted(*arguments):
        chosen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return forward_layers(*arguments)

    monkeypatch.setattr(layer_graphs, "forward_layers", noted)
    monkeypatch.setattr(
        layer_graphs, "_Graphs", lambda *given: chosen.append(torch.backends.cuda.cudnn_sdp_enabled()) or ByHand(*given)
    )
    (pack,) = packs(0)
    for _ in range(4):
        pack_logprobs(model, pack, 1.0, prepared)
    assert chosen == expected


def test_all_graphs_share_one_pool_of_memory(model, layers):
    for claims in ((0,), (1, 2), (3, 4, 5)):
        for _ in range(4):
            for pack in packs(*claims):
                pack_logprobs(model, pack, 1.0, layers.prepared)
    assert len(layers.made) >= 3
    assert layers.made[0].given is None
    assert all(each.given is layers.made[0].pool for each in layers.made[1:])


def test_no_graph_where_kernels_take_longer_than_launching_them(model, layers, monkeypatch):
    (pack,) = packs(0)
    work = sum(weight.numel() for weight in layers.weights) * pack.token_ids.size
    monkeypatch.setattr(layer_graphs, "LAUNCHES_PREVAIL", work - 1)
    for _ in range(5):
        pack_logprobs(model, pack, 1.0, layers.prepared)
    assert not layers.made
    monkeypatch.setattr(layer_graphs, "LAUNCHES_PREVAIL", work)
    pack_logprobs(model, pack, 1.0, layers.prepared)
    assert len(layers.made) == 1


def test_no_graph_while_memory_is_short(model, layers):
    """7,000 bytes are what a pass needs, beside the optimizer's state; 8,000 of what is reserved are unused."""
    (pack,) = packs(0)
    state = layer_graphs.MOMENTS_BYTES * sum(own.numel() for own in model.parameters())
    layers.memory["free"] = 2 * (7_000 + state) - 8_000
    for _ in range(5):
        pack_logprobs(model, pack, 1.0, layers.prepared)
    assert not layers.made
    layers.memory["free"] += 1
    pack_logprobs(model, pack, 1.0, layers.prepared)
    assert len(layers.made) == 1


def test_no_graph_before_every_weight_has_a_gradient(model, layers):
    (pack,) = packs(0)
    layers.weights[0].grad = None
    for _ in range(5):
        pack_logprobs(model, pack, 1.0, layers.prepared)
    assert not layers.made


def test_so_many_graphs_and_no_more(model, layers, monkeypatch):
    monkeypatch.setattr(layer_graphs, "MOST_GRAPHS", 2)
    for claims in ((0,), (1, 2), (3, 4, 5)):
        for _ in range(4):
            for pack in packs(*claims):
                pack_logprobs(model, pack, 1.0, layers.prepared)
    assert len(layers.made) == 2


def test_no_graphs_of_a_big_model_nor_of_one_that_is_only_forwarded(model, layers, monkeypatch):
    reference = PreparedLayers(model)
    monkeypatch.setattr(layer_graphs, "GRAPHED_MODEL", 10)
    big = PreparedLayers(model, layers.weights)
    (pack,) = packs(0)
    for prepared in (reference, big):
        for _ in range(5):
            torch.testing.assert_close(pack_logprobs(model, pack, 1.0, prepared), pack_logprobs(model, pack, 1.0))
    assert not layers.made
    assert not reference.may_capture and not big.may_capture
    assert layers.prepared.may_capture


def test_a_model_that_no_graph_can_hold_is_forwarded_as_it_is(model, layers, monkeypatch, caplog):
    (pack,) = packs(0)
    calls = []

    def fail(*given):
        calls.append(given)
        raise RuntimeError("operation not permitted when stream is capturing\nand so on")

    monkeypatch.setattr(layer_graphs, "_Graphs", fail)
    expected = pack_logprobs(model, pack, 1.0)
    for _ in range(6):
        torch.testing.assert_close(pack_logprobs(model, pack, 1.0, layers.prepared), expected)
    assert len(calls) == 1
    assert caplog.messages == ["no CUDA graphs for Qwen3ForCausalLM: operation not permitted when stream is capturing"]
