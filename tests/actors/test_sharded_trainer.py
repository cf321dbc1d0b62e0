"""Two ranks that share one model, over gloo, against one that has it alone: no Ray, two processes for all tests."""

import math
import multiprocessing
import os
import traceback
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.trainers import sharded_policy
from actors.trainers.torch_trainer import TorchTrainer, TrainerSpec
from actors.weight_slots import WeightSlots
from rlhaiku.batching import make_batch
from rlhaiku.config import AlgorithmConfig, TrainerConfig
from tests.tiny import make_scored, save_tiny_model

RANKS = 2
ANSWER_S = 120
ROUNDING = {"rtol": 1e-4, "atol": 1e-6}
"""Of gradients: fp32 sums in another order."""
STEPPED = {"rtol": 1e-3, "atol": 4e-5}
"""Of weights after AdamW steps of 1e-3: a gradient near zero may round to another sign."""


def make_spec(model_path, weights_file, rank=0, num_ranks=1, *, algorithm=None, device="cpu", **settings):
    config = TrainerConfig(threads=1, **{"lr": 1e-3, "weight_decay": 0.01} | settings)
    return TrainerSpec(
        str(model_path), weights_file, 2, 10, config, algorithm or AlgorithmConfig(), device, rank=rank,
        num_ranks=num_ranks, timeout_s=60.0,
    )  # fmt: skip


def make_train_batch(step=0, num_groups=5):
    """Groups of different lengths, so that shares are uneven."""
    totals = [[0.0, 1.0, 0.25, 0.5][: 2 + claim % 3] for claim in range(num_groups)]
    scored = [make_scored(claim, each) for claim, each in enumerate(totals)]
    return make_batch(step, scored, AlgorithmConfig(), 1.0).batch


class Rank:
    """What a test asks of a trainer, in its process or in this one."""

    def make(self, spec):
        if spec.num_ranks > 1 and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        self.trainer = TorchTrainer(spec)

    def gradients(self, batch):
        """Those that AdamW was given, after a step; whole, on rank 0."""
        stats = self.trainer.train_step(batch)
        return stats, self._whole({name: weight.grad for name, weight in self.trainer._policy.weights.items()})

    def weights(self):
        return self._whole(dict(self.trainer._policy.weights))

    def _whole(self, tensors):
        whole = self.trainer._policy.whole(tensors)
        return {name: tensor.detach().cpu().clone() for name, tensor in whole.items() if tensor is not None}

    def held(self):
        """Bytes that this rank keeps in memory for weights and moments."""
        weights = self.trainer._policy.weights.values()
        states = self.trainer._optimizer.state.values()
        moments = [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")]
        kept = [[getattr(tensor, "_local_tensor", tensor) for tensor in each] for each in (weights, moments)]
        return [sum(tensor.untyped_storage().nbytes() for tensor in each) for each in kept]

    def gathered(self, shapes, bucket_elements):
        """Tensors of these shapes, after they were cut among the ranks, in exchanges of so many elements."""
        policy = self.trainer._policy
        whole = {str(shape): torch.arange(math.prod(shape), dtype=torch.float32).reshape(shape) for shape in shapes}
        weights = policy.share({name: tensor.to(policy._device) for name, tensor in whole.items()})
        with patch.object(sharded_policy, "BUCKET_ELEMENTS", bucket_elements), patch.object(policy, "weights", weights):
            return {name: tensor.float().cpu().numpy() for name, tensor in policy.outgoing()}

    def __getattr__(self, name):
        return getattr(self.trainer, name)


def serve(pipe, card):
    os.environ["CUDA_VISIBLE_DEVICES"] = str(card)  # as Ray does; CUDA is not yet asked for anything
    torch.set_num_threads(1)
    rank = Rank()
    while True:
        method, arguments = pipe.recv()
        try:
            pipe.send(getattr(rank, method)(*arguments))
        except Exception:
            pipe.send(AssertionError(traceback.format_exc()))


class Pair:
    """Two ranks; each answer is rank 0's."""

    def __init__(self):
        context = multiprocessing.get_context("spawn")
        pipes = [context.Pipe() for _ in range(RANKS)]
        self.pipes = [ours for ours, _ in pipes]
        self.processes = [
            context.Process(target=serve, args=(theirs, card), daemon=True)
            for card, (_, theirs) in enumerate(pipes)
        ]
        for process in self.processes:
            process.start()

    def ask(self, method, *arguments):
        return self.ask_both(method, *([arguments] * RANKS))[0]

    def ask_both(self, method, *arguments):
        for pipe, mine in zip(self.pipes, arguments, strict=True):
            pipe.send((method, mine))
        answers = []
        for pipe in self.pipes:
            assert pipe.poll(ANSWER_S), f"{method}: no answer"
            answers.append(pipe.recv())
        for answer in answers:
            if isinstance(answer, AssertionError):
                raise answer
        return answers


    def end(self):
        for process in self.processes:
            process.kill()
            process.join(30)


@pytest.fixture(scope="module")
def processes():
    pair = Pair()
    yield pair
    pair.end()


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def make_pair(processes, model_path, tmp_path):
    def make(name="pair", **settings):
        (tmp_path / name).mkdir()
        specs = [(make_spec(model_path, tmp_path / name / "w", rank, RANKS, **settings),) for rank in range(RANKS)]
        processes.ask_both("make", *specs)
        return processes

    return make


@pytest.fixture
def make_alone(model_path, tmp_path):
    def make(name="alone", **settings):
        (tmp_path / name).mkdir()
        alone = Rank()
        alone.make(make_spec(model_path, tmp_path / name / "w", **settings))
        return alone

    yield make
    torch.use_deterministic_algorithms(False)


def assert_close(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **tolerance, msg=lambda said, name=name: f"{name}: {said}")


def assert_alike(pair, alone, batch):
    """One step of each from equal weights."""
    (stats, gradients), (expected, their_gradients) = pair.ask("gradients", batch), alone.gradients(batch)
    for name in ("loss", "grad_norm", "clip_fraction", "logprob_gap", "kl", "truncated_fraction"):
        assert getattr(stats, name) == pytest.approx(getattr(expected, name), rel=1e-5, abs=1e-7), name
    assert (stats.lr, stats.num_loss_tokens) == (expected.lr, expected.num_loss_tokens)
    assert_close(gradients, their_gradients, **ROUNDING)
    assert_close(pair.ask("weights"), alone.weights(), **STEPPED)
    return stats, expected


@pytest.mark.parametrize("settings", [
    {},
    {"micro_batch_tokens": 20},
    {"shared_prompt": False, "micro_batch_tokens": 60},
    {"recompute": True},
    {"algorithm": AlgorithmConfig(loss_aggregation="sequence", kl_coef=0.1)},
    {"algorithm": AlgorithmConfig(max_importance_ratio=1.5)},
], ids=["plain", "many packs", "a prompt each", "recompute", "sequence mean and KL", "bounded ratios"])
def test_two_ranks_are_one_trainer(make_pair, make_alone, settings):
    stats, expected = assert_alike(make_pair(**settings), make_alone(**settings), make_train_batch())
    assert stats.num_forward_tokens == expected.num_forward_tokens


def test_a_rank_without_a_group_takes_part(make_pair, make_alone):
    assert_alike(make_pair(optimizer_steps=1), make_alone(optimizer_steps=1), make_train_batch(num_groups=1))


def test_several_optimizer_steps(make_pair, make_alone):
    pair, alone = make_pair(optimizer_steps=3), make_alone(optimizer_steps=3)
    for step in range(2):
        stats, expected = pair.ask("train_step", make_train_batch(step)), alone.train_step(make_train_batch(step))
        assert stats.loss == pytest.approx(expected.loss, rel=1e-3)
    assert_close(pair.ask("weights"), alone.weights(), rtol=1e-2, atol=2e-4)


def test_each_rank_keeps_half_before_and_after_a_resume(make_pair, make_alone, tmp_path):
    pair, alone = make_pair(), make_alone()
    pair.ask("train_step", make_train_batch())
    alone.train_step(make_train_batch())
    pair.ask("save", tmp_path)
    whole, halves = alone.held(), pair.ask_both("held", (), ())
    resumed = make_pair("resumed")
    resumed.ask("load", tmp_path)
    halves += resumed.ask_both("held", (), ())
    assert all(0.45 < held / all_ < 0.55 for half in halves for held, all_ in zip(half, whole, strict=True)), halves


def test_weights_go_out_whole_from_rank_0(make_pair, make_alone, tmp_path):
    pair, alone = make_pair(), make_alone()
    first = pair.ask_both("send_weights", (0,), (0,))
    assert first == [alone.send_weights(0), None]
    pair.ask("train_step", make_train_batch())
    sent = pair.ask("send_weights", 1)
    slots = WeightSlots(tmp_path / "pair" / "w", alone.trainer._model, 2)
    assert slots.checksum(1) == sent.checksum != first[0].checksum
    weights = pair.ask("weights")
    assert all(torch.equal(view, weights[name]) for name, view in slots.views(1).items())


@pytest.mark.parametrize("bucket_elements", [1, 40, 10**6])
def test_rows_that_do_not_go_evenly_arrive_whole_and_in_their_places(make_pair, bucket_elements):
    shapes = [(5, 3), (1, 4), (7,), (4, 2, 3), (2, 2), (3,)]
    first, second = make_pair().ask_both("gathered", *[(shapes, bucket_elements)] * RANKS)
    assert list(first) == [str(shape) for shape in shapes] and not second
    for shape, found in zip(shapes, first.values(), strict=True):
        assert (found == np.arange(math.prod(shape)).reshape(shape)).all()


def test_a_checkpoint_is_the_same_for_any_number_of_ranks(make_pair, make_alone, tmp_path):
    saved = {name: tmp_path / f"saved-{name}" for name in ("pair", "alone", "again")}
    for directory in saved.values():
        directory.mkdir()
    pair = make_pair()
    pair.ask("train_step", make_train_batch())
    pair.ask("save", saved["pair"])
    weights = pair.ask("weights")

    straight, expected = pair.ask("gradients", make_train_batch(1)), pair.ask("weights")
    resumed = make_pair("resumed")
    resumed.ask("load", saved["pair"])
    assert resumed.ask("gradients", make_train_batch(1))[0] == straight[0]
    assert_close(resumed.ask("weights"), expected, rtol=0, atol=0)  # the same ranks: the same bits

    alone = make_alone()
    alone.load(saved["pair"])
    assert_close(alone.weights(), weights, rtol=0, atol=0)
    alone.save(saved["alone"])
    stats, _ = alone.gradients(make_train_batch(1))
    assert stats.loss == pytest.approx(straight[0].loss, rel=1e-5)
    assert_close(alone.weights(), expected, **STEPPED)

    back = make_pair("back")
    back.ask("load", saved["alone"])
    back.ask("save", saved["again"])
    one, other = (torch.load(saved[name] / "trainer.pt", weights_only=True) for name in ("pair", "again"))
    assert_close(other["weights"], one["weights"], rtol=0, atol=0)
    assert other["optimizer"]["param_groups"] == one["optimizer"]["param_groups"]
    for place, state in one["optimizer"]["state"].items():
        assert_close(other["optimizer"]["state"][place], state, rtol=0, atol=0)

    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (saved["pair"] / "hf" / name).read_text() == (saved["alone"] / "hf" / name).read_text()
    for name in ("pair", "alone"):
        model = AutoModelForCausalLM.from_pretrained(saved[name] / "hf", dtype=torch.float32)
        assert_close(dict(model.named_parameters()), weights, rtol=0, atol=0)


def test_a_rank_that_dies_is_known_as_such(make_pair):
    """A restart from the checkpoint follows, where an error of its own would end the run. Here rank 1 ends for good."""
    pair = make_pair()
    pair.processes[1].kill()
    pair.pipes[0].send(("train_step", (make_train_batch(),)))
    assert pair.pipes[0].poll(ANSWER_S)
    assert "ActorDied: trainer rank 0 needs the others" in str(pair.pipes[0].recv())


def test_a_rank_that_never_comes_is_not_waited_for_without_end(processes, model_path, tmp_path):
    spec = replace(make_spec(model_path, tmp_path / "w", 0, RANKS), timeout_s=2.0)
    processes.pipes[0].send(("make", (spec,)))
    assert processes.pipes[0].poll(ANSWER_S)
    assert "ActorDied: trainer rank 0 needs the others" in str(processes.pipes[0].recv())
