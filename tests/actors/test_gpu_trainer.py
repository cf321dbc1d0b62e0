"""The torch trainer on a GPU against itself on the CPU, on the tiny model."""

import multiprocessing

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
    def make(device, *, compiled=False, **settings):
        config = TrainerConfig(threads=2, **{"lr": 1e-3, "weight_decay": 0.0} | settings)
        slots = tmp_path / f"{device}-{len(settings)}-{compiled}"
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
