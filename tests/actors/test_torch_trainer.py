import shutil
from array import array
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.trainers.forward import chosen_logprobs, pack_logprobs
from actors.trainers.torch_trainer import TorchTrainer, TrainerSpec, learning_rate
from rlhaiku.batching import make_batch
from rlhaiku.config import AlgorithmConfig, TrainerConfig
from rlhaiku.packing import pack_groups
from tests.tiny import make_scored, save_tiny_model


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def make_trainer(model_path, tmp_path):
    def make(algorithm=None, **settings):
        config = TrainerConfig(threads=1, **{"lr": 1e-3, "weight_decay": 0.0} | settings)
        return TorchTrainer(TrainerSpec(str(model_path), tmp_path / "w", 2, 10, config, algorithm or AlgorithmConfig()))

    yield make
    torch.use_deterministic_algorithms(False)


def make_train_batch(step=0, algorithm=None):
    """Groups whose rollout logprobs are the tiny model's own would need an engine; the ratio may be anything here."""
    scored = [make_scored(claim, [0.0, 1.0, 0.25, 0.5]) for claim in range(4)]
    return make_batch(step, scored, algorithm or AlgorithmConfig(), 1.0).batch


def on_policy(trainer, batch):
    """The same batch with rollout logprobs of the trainer's current weights."""
    groups = []
    for group in batch.groups:
        [pack] = pack_groups([group], 10_000, True)
        logprobs = iter(pack_logprobs(trainer._model, pack, 1.0).tolist())
        samples = tuple(
            replace(s, rollout_logprobs=array("d", [next(logprobs) for _ in s.token_ids])) for s in group.samples
        )
        groups.append(replace(group, samples=samples))
    return replace(batch, groups=tuple(groups))


def weights(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer._model.named_parameters()}


def test_a_step_raises_what_was_better_than_its_group(make_trainer):
    trainer = make_trainer()
    batch = on_policy(trainer, make_train_batch())
    [pack] = pack_groups(batch.groups, 10_000, True)
    before = pack_logprobs(trainer._model, pack, 1.0)
    stats = trainer.train_step(batch)
    after = pack_logprobs(trainer._model, pack, 1.0)
    gain = ((after - before) * torch.from_numpy(pack.advantages)).sum()
    assert gain > 0
    assert stats.logprob_gap < 1e-5
    assert stats.clip_fraction == 0
    assert stats.grad_norm > 0
    assert stats.num_loss_tokens == batch.num_loss_tokens


def test_tokens_beyond_the_bound_on_ratios_are_counted(make_trainer):
    batch = make_train_batch()

    def unlikely(sample):
        logprobs = [-9.0, *sample.rollout_logprobs[1:]]  # the model's are about -6
        return replace(sample, rollout_logprobs=array("d", logprobs))

    groups = tuple(replace(group, samples=tuple(map(unlikely, group.samples))) for group in batch.groups)
    trainers = make_trainer(), make_trainer(AlgorithmConfig(max_importance_ratio=2.0))
    shares = [trainer.train_step(replace(batch, groups=groups)).truncated_fraction for trainer in trainers]
    assert shares == [0, batch.num_samples / batch.num_loss_tokens]


def test_optimizer_steps_divide_the_batch(make_trainer):
    one, four = make_trainer(), make_trainer(optimizer_steps=4)
    for trainer in (one, four):
        trainer.train_step(make_train_batch())
    counts = [next(iter(trainer._optimizer.state.values()))["step"].item() for trainer in (one, four)]
    assert counts == [1, 4]


def test_micro_batches_change_nothing_beyond_rounding(make_trainer):
    whole, cut = make_trainer(), make_trainer(micro_batch_tokens=30)
    losses = [trainer.train_step(make_train_batch()).loss for trainer in (whole, cut)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    for (_, one), (_, other) in zip(weights(whole).items(), weights(cut).items(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-5)


def test_saved_and_loaded_training_goes_on_bit_for_bit(make_trainer, tmp_path):
    straight = make_trainer()
    for step in range(4):
        straight.train_step(make_train_batch(step))
    first = make_trainer()
    for step in range(2):
        first.train_step(make_train_batch(step))
    (tmp_path / "saved").mkdir()
    first.save(tmp_path / "saved")
    second = make_trainer()
    second.load(tmp_path / "saved")
    for step in range(2, 4):
        second.train_step(make_train_batch(step))
    for name, parameter in weights(straight).items():
        assert torch.equal(parameter, weights(second)[name]), name


def test_saved_hf_directory_loads_and_holds_the_weights(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.train_step(make_train_batch())
    (tmp_path / "saved").mkdir()
    trainer.save(tmp_path / "saved")
    shutil.move(tmp_path / "saved" / "hf", tmp_path / "elsewhere")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "elsewhere", dtype=torch.float32)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights(trainer)[name]), name
    assert (tmp_path / "elsewhere" / "tokenizer.json").exists()


def test_reference_model_only_with_a_kl_coefficient(make_trainer):
    assert make_trainer()._reference is None
    algorithm = AlgorithmConfig(kl_coef=0.1)
    trainer = make_trainer(algorithm)
    kls = [trainer.train_step(make_train_batch(step, algorithm)).kl for step in range(3)]
    assert kls[0] == pytest.approx(0.0, abs=1e-6)
    assert kls[2] > 1e-4


def test_kl_holds_the_policy_back(make_trainer):
    distances = []
    for kl_coef in (0.0, 5.0):
        algorithm = AlgorithmConfig(kl_coef=kl_coef)
        trainer = make_trainer(algorithm)
        start = weights(trainer)
        for step in range(6):
            trainer.train_step(make_train_batch(step, algorithm))
        distances.append(sum((w - start[n]).square().sum().item() for n, w in weights(trainer).items()))
    assert distances[1] < distances[0]


def test_schedules():
    constant = TrainerConfig(lr=1.0, lr_warmup_steps=3)
    assert [learning_rate(step, 10, constant) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    linear = TrainerConfig(lr=1.0, lr_schedule="linear")
    assert [learning_rate(step, 10, linear) for step in (0, 9)] == [1.0, pytest.approx(0.1)]
    assert learning_rate(0, 1, linear) == 1.0


def test_logits_in_chunks_give_the_same_logprobs_and_gradients():
    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=False)
    hidden, targets = torch.randn(23, 16), torch.randint(50, (23,))
    found = []
    for max_bytes in (1 << 30, 7 * 50 * 4):  # all at once, and seven rows at a time
        leaf = hidden.clone().requires_grad_()
        logprobs = chosen_logprobs(head, leaf, targets, 0.7, max_bytes)
        gradients = torch.autograd.grad((logprobs * torch.linspace(-1, 1, 23)).sum(), [leaf, head.weight])
        found.append((logprobs, *gradients))
    for whole, cut in zip(*found, strict=True):
        torch.testing.assert_close(whole, cut, rtol=1e-6, atol=1e-6)


def test_recomputing_activations_changes_nothing(make_trainer):
    kept, recomputed = make_trainer(), make_trainer(recompute=True)
    for trainer in (kept, recomputed):
        trainer.train_step(make_train_batch())
    assert not any(module.training for module in recomputed._model.modules() if "Attention" in type(module).__name__)
    for name, parameter in weights(kept).items():
        assert torch.equal(parameter, weights(recomputed)[name]), name
