"""The torch trainer on a GPU against itself on the CPU, on the tiny model."""

import multiprocessing
from itertools import count

import pytest
import torch

from actors.trainers import layer_graphs
from actors.trainers.forward import pack_logprobs
from actors.trainers.torch_trainer import TorchTrainer, TrainerSpec
from actors.weight_slots import DeviceWeightSlots
from rlhaiku.batching import make_batch
from rlhaiku.config import AlgorithmConfig, TrainerConfig
from rlhaiku.packing import pack_groups
from tests.tiny import make_scored, save_tiny_model

pytestmark = pytest.mark.gpu
BF16 = 2**-8
"""Relative step between neighbouring numbers."""


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def make_trainer(model_path, tmp_path):
    number = count()

    def make(device, *, compiled=False, slots=2, kl_coef=0.0, **settings):
        config = TrainerConfig(threads=2, **{"lr": 1e-3, "weight_decay": 0.0} | settings)
        file, algorithm = tmp_path / f"slots-{next(number)}", AlgorithmConfig(kl_coef=kl_coef)
        return TorchTrainer(TrainerSpec(str(model_path), file, slots, 10, config, algorithm, device, compiled))

    yield make
    torch.use_deterministic_algorithms(False)


def train_batch(step=0):
    scored = [make_scored(claim, [0.0, 1.0, 0.25, 0.5]) for claim in range(6)]
    return make_batch(step, scored, AlgorithmConfig(), 1.0).batch


def gradients(trainer):
    """Of the loss tokens' logprobs, weighted by their advantages; fp32 on the CPU, by weight."""
    for pack in pack_groups(train_batch().groups, 4096, True):
        logprobs = pack_logprobs(trainer._model, pack, 1.0)
        (logprobs * torch.from_numpy(pack.advantages).to(logprobs.device)).sum().backward()
    return {name: weight.grad.float().cpu() for name, weight in trainer._policy.weights.items()}


@pytest.mark.parametrize(("compiled", "settings"), [
    (False, {}), (False, {"recompute": True}), (False, {"micro_batch_tokens": 30}), (True, {}),
    (True, {"recompute": True}),
])
def test_loss_and_gradients_are_those_of_the_cpu(make_trainer, compiled, settings):
    here, there = make_trainer("cpu"), make_trainer("cuda", compiled=compiled, **settings)
    expected, found = gradients(here), gradients(there)
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm() / gradient.norm()
        assert error < 16 * BF16, f"{name}: {error:.4f}"
    stats, other = here.train_step(train_batch()), there.train_step(train_batch())
    assert other.loss == pytest.approx(stats.loss, rel=0.02, abs=2e-3)
    assert other.grad_norm == pytest.approx(stats.grad_norm, rel=0.03)
    assert other.logprob_gap == pytest.approx(stats.logprob_gap, abs=0.02)


def test_fp32_masters_keep_what_bf16_would_lose(make_trainer):
    trainer = make_trainer("cuda", lr=1e-6)
    before = {name: weight.detach().clone() for name, weight in trainer._policy.weights.items()}
    own = {name: parameter.detach().clone() for name, parameter in trainer._model.named_parameters()}
    trainer.train_step(train_batch())
    assert all(not torch.equal(weight, before[name]) for name, weight in trainer._policy.weights.items())
    unchanged = [torch.equal(parameter, own[name]) for name, parameter in trainer._model.named_parameters()]
    assert any(unchanged)  # a step of 1e-6 is below what bf16 can show
    for name, parameter in trainer._model.named_parameters():
        assert torch.equal(parameter, trainer._policy.weights[name].bfloat16()), name


def test_saved_training_goes_on(make_trainer, tmp_path):
    first = make_trainer("cuda")
    first.train_step(train_batch())
    first.save(tmp_path)
    second = make_trainer("cuda")
    second.load(tmp_path)
    for name, weight in first._policy.weights.items():
        assert torch.equal(weight, second._policy.weights[name]), name
    for name, parameter in first._model.named_parameters():
        assert torch.equal(parameter, dict(second._model.named_parameters())[name]), name
    stats = [trainer.train_step(train_batch(1)).grad_norm for trainer in (first, second)]
    assert stats[0] == pytest.approx(stats[1], rel=1e-2)


def _read(path, versions, answers):
    slots = DeviceWeightSlots.open(path)
    answers.put([slots.checksum(version) for version in versions])


def test_another_process_reads_the_trainers_weights(make_trainer):
    trainer = make_trainer("cuda")
    sent = [trainer.send_weights(0)]
    trainer.train_step(train_batch())
    sent.append(trainer.send_weights(1))
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    reader = context.Process(target=_read, args=(trainer._spec.weights_file, [0, 1], answers))
    reader.start()
    found = answers.get(timeout=120)
    reader.join(60)
    assert found == [each.checksum for each in sent]
    assert found[0] != found[1]
    assert sent[0].num_bytes == 2 * sum(weight.numel() for weight in trainer._policy.weights.values())


def graphs_of(trainer):
    return trainer._policy._layers._graphs


def other_batch(step=0):
    """Of other shapes: wider rows, and more of them."""
    scored = [make_scored(claim, [1.0, 0.0, 0.5] * 8) for claim in range(20, 29)]
    return make_batch(step, scored, AlgorithmConfig(), 1.0).batch


def no_graphs(trainer):
    trainer._policy._layers.may_capture = False
    return trainer


@pytest.mark.parametrize(("micro_batch_tokens", "shapes"), [(4096, 2), (256, 3)])
def test_graphs_give_the_gradients_of_plain_passes(make_trainer, micro_batch_tokens, shapes):
    """Shapes by turns, so that each overwrites the memory that all work in; next to no learning."""
    settings = {"lr": 1e-12, "max_grad_norm": 1e9, "micro_batch_tokens": micro_batch_tokens}
    graphed, plain = make_trainer("cuda", **settings), no_graphs(make_trainer("cuda", **settings))
    seen = {}
    for turn in range(6):
        for name, batch in (("one", train_batch()), ("other", other_batch())):
            losses, found = [], []
            for trainer in (graphed, plain):
                losses.append(trainer.train_step(batch).loss)
                found.append(torch.cat([weight.grad.flatten() for weight in trainer._policy.weights.values()]).cpu())
            assert losses[0] == pytest.approx(losses[1], rel=0.01, abs=1e-3)
            error = (found[0] - found[1]).norm() / found[1].norm()
            assert error < 8 * BF16, f"{name} in turn {turn}: {error:.4f}"
            seen[name] = found[0]
    assert len(graphs_of(graphed)) == shapes
    assert not graphs_of(plain)
    assert (seen["one"] - seen["other"]).norm() > seen["one"].norm() / 10


@pytest.mark.parametrize("slots", [1, 2])
def test_graphs_go_on_with_weights_that_were_loaded(make_trainer, tmp_path, slots):
    """With one slot the model's parameters are the slot."""
    trainer = make_trainer("cuda", slots=slots)
    for step in range(4):
        trainer.train_step(train_batch(step))
    assert graphs_of(trainer)
    trainer.save(tmp_path)
    first = trainer.train_step(train_batch(4))
    last = [trainer.train_step(train_batch(step)) for step in range(5, 9)][-1]
    trainer.load(tmp_path)
    again = trainer.train_step(train_batch(4))
    assert again.logprob_gap == pytest.approx(first.logprob_gap, rel=1e-3)
    assert again.grad_norm == pytest.approx(first.grad_norm, rel=0.02)
    assert abs(last.logprob_gap - first.logprob_gap) > 0.01 * first.logprob_gap


def test_a_reference_has_the_policys_attention(make_trainer, monkeypatch):
    trainer, chosen, plain = make_trainer("cuda", kl_coef=0.1, lr=1e-12), {}, layer_graphs.forward_layers

    def noted(model, *arguments):
        chosen.setdefault(id(model), []).append(torch.backends.cuda.cudnn_sdp_enabled())
        return plain(model, *arguments)

    monkeypatch.setattr(layer_graphs, "forward_layers", noted)
    trainer._policy._layers._is_small = trainer._reference_layers._is_small = False
    kl = [trainer.train_step(train_batch(step)).kl for step in range(5)]
    assert graphs_of(trainer)
    assert chosen[id(trainer._model)] == [False, True, True], "as new, as known, and into the graph"
    assert chosen[id(trainer._reference)] == [False, True, True, True, True]
    assert max(map(abs, kl)) < 1e-5, kl


def test_training_with_graphs_is_training_without(make_trainer):
    graphed, plain = make_trainer("cuda", lr=1e-4), no_graphs(make_trainer("cuda", lr=1e-4))
    runs = [[trainer.train_step(train_batch(step)) for step in range(10)] for trainer in (graphed, plain)]
    assert graphs_of(graphed) and not graphs_of(plain)
    for one, other in zip(*runs, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=0.05, abs=5e-3)
        assert one.logprob_gap == pytest.approx(other.logprob_gap, rel=0.02)
        assert one.grad_norm == pytest.approx(other.grad_norm, rel=0.05)


def looking(hidden):
    """Waits for the card, and so cannot be part of a graph."""
    return hidden * (hidden.abs().sum().item() > -1)


def looking_backward(hidden):
    hidden.register_hook(looking)
    return hidden


@pytest.mark.parametrize("look", [looking, looking_backward])
@pytest.mark.parametrize("has_graphs", [False, True])
def test_a_model_that_looks_at_values_is_trained_without_graphs(make_trainer, caplog, look, has_graphs):
    trainer = make_trainer("cuda")
    if has_graphs:
        for step in range(4):
            trainer.train_step(other_batch(step))
    before = set(graphs_of(trainer))
    assert bool(before) == has_graphs
    norm = trainer._model.base_model.norm
    plain = norm.forward
    norm.forward = lambda hidden: look(plain(hidden))
    stats = [trainer.train_step(train_batch(step)) for step in range(8)]
    assert set(graphs_of(trainer)) == before
    assert "no CUDA graphs for" in caplog.text and "synchronizing" in caplog.text, caplog.text
    assert stats[-1].logprob_gap != stats[-2].logprob_gap  # it goes on learning
    # and torch's memory is as it was: a spoilt capture would keep all that is cached
    torch.cuda.empty_cache()
    torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    reserved = torch.cuda.memory_reserved()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= reserved - (1 << 30)
