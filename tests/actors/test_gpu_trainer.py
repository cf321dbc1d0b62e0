"""The torch trainer on a GPU against itself on the CPU, on the tiny model."""

import multiprocessing
from itertools import count

import pytest
import torch

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

    def make(device, *, compiled=False, **settings):
        config = TrainerConfig(threads=2, **{"lr": 1e-3, "weight_decay": 0.0} | settings)
        slots = tmp_path / f"slots-{next(number)}"
        algorithm = AlgorithmConfig()
        return TorchTrainer(TrainerSpec(str(model_path), slots, 2, 10, config, algorithm, device, compiled))

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
    scored = [make_scored(claim, [1.0, 0.0, 0.5]) for claim in range(20, 29)]
    return make_batch(step, scored, AlgorithmConfig(), 1.0).batch


@pytest.mark.parametrize("micro_batch_tokens", [4096, 64])
def test_graphs_give_the_gradients_of_the_first_steps(make_trainer, micro_batch_tokens):
    """Two shapes by turns, so that each overwrites the memory that both work in; next to no learning."""
    trainer = make_trainer("cuda", lr=1e-12, max_grad_norm=1e9, micro_batch_tokens=micro_batch_tokens)
    losses, found = {}, {}
    for turn in range(7):
        for name, batch in (("one", train_batch()), ("other", other_batch())):
            loss = trainer.train_step(batch).loss
            gradient = torch.cat([weight.grad.flatten() for weight in trainer._policy.weights.values()]).cpu()
            expected = found.setdefault(name, gradient)
            assert loss == pytest.approx(losses.setdefault(name, loss), rel=0.01, abs=1e-3)
            error = (gradient - expected).norm() / expected.norm()
            assert error < 8 * BF16, f"{name} in turn {turn}: {error:.4f}"
    assert graphs_of(trainer)
    if micro_batch_tokens == 4096:
        assert len(graphs_of(trainer)) == 2
    assert (found["one"] - found["other"]).norm() > found["one"].norm() / 10


def test_training_with_graphs_is_training_without(make_trainer, monkeypatch):
    from actors.trainers import layer_graphs

    runs = []
    for most in (layer_graphs.LAUNCHES_PREVAIL, 0):
        monkeypatch.setattr(layer_graphs, "LAUNCHES_PREVAIL", most)
        trainer = make_trainer("cuda", lr=1e-4)
        runs.append([trainer.train_step(train_batch(step)) for step in range(10)])
        assert bool(graphs_of(trainer)) == bool(most)
    for graphed, plain in zip(*runs, strict=True):
        assert graphed.loss == pytest.approx(plain.loss, rel=0.05, abs=5e-3)
        assert graphed.logprob_gap == pytest.approx(plain.logprob_gap, rel=0.02)
        assert graphed.grad_norm == pytest.approx(plain.grad_norm, rel=0.05)


def test_a_model_that_looks_at_values_is_trained_without_graphs(make_trainer, caplog):
    trainer = make_trainer("cuda")
    norm = trainer._model.base_model.norm
    plain = norm.forward
    norm.forward = lambda hidden: plain(hidden) if hidden.abs().sum().item() > 0 else hidden
    stats = [trainer.train_step(train_batch(step)) for step in range(8)]
    assert not graphs_of(trainer)
    assert "no CUDA graphs for" in caplog.text
    assert stats[-1].logprob_gap != stats[-2].logprob_gap  # it goes on learning
