"""Shared-prompt packing changes the number of forwarded tokens and nothing else."""

from array import array

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from actors.trainers.forward import attention_allowed, pack_logprobs
from rlhaiku.batching import make_batch
from rlhaiku.config import AlgorithmConfig
from rlhaiku.losses import LossSettings, policy_loss
from rlhaiku.packing import group_tokens, pack_groups, split_groups
from rlhaiku.types import GroupKey, TrainGroup, TrainSample
from tests.tiny import make_scored, save_tiny_model


def batch_groups(count=5):
    scored = [make_scored(claim, [0.0, 1.0, 0.25, 0.5][: 2 + claim % 3]) for claim in range(count)]
    return make_batch(0, scored, AlgorithmConfig(), 1.0).batch.groups


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = save_tiny_model(tmp_path_factory.mktemp("tiny"))
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def loss_and_gradients(model, groups, max_tokens, shared_prompt, aggregation, columns=1):
    samples = [sample for group in groups for sample in group.samples]
    tokens = sum(len(sample.token_ids) for sample in samples)
    settings = LossSettings(0.2, 0.28, 0.0, aggregation, tokens, len(samples))
    model.zero_grad()
    loss = 0.0
    for pack in pack_groups(groups, max_tokens, shared_prompt, columns):
        tensors = (pack.rollout_logprobs, pack.advantages, pack.sequence_lengths)
        output = policy_loss(pack_logprobs(model, pack, 1.0), *map(torch.from_numpy, tensors), settings)
        output.loss.backward()
        loss += output.loss.item()
    return loss, [parameter.grad.clone() for parameter in model.parameters()]


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
@pytest.mark.parametrize(("max_tokens", "columns"), [(1, 1), (40, 1), (10_000, 1), (90, 16)])
def test_loss_and_gradients_equal_the_unpacked_ones(model, aggregation, max_tokens, columns):
    groups = batch_groups()
    loss, gradients = loss_and_gradients(model, groups, 1, False, aggregation)
    packed_loss, packed_gradients = loss_and_gradients(model, groups, max_tokens, True, aggregation, columns)
    assert packed_loss == pytest.approx(loss, rel=1e-5)
    assert max(gradient.abs().max() for gradient in gradients) > 1e-3
    for gradient, packed in zip(gradients, packed_gradients, strict=True):
        torch.testing.assert_close(packed, gradient, rtol=1e-4, atol=1e-6)


def test_logprobs_equal_a_plain_forward_of_each_sequence(model):
    groups = batch_groups()
    expected = []
    for group in groups:
        for sample in group.samples:
            token_ids = torch.tensor([[*group.prompt_token_ids, *sample.token_ids]])
            logprobs = model(input_ids=token_ids).logits[0, :-1].log_softmax(-1)
            chosen = logprobs.gather(-1, token_ids[0, 1:, None])[:, 0]
            expected.append(chosen[len(group.prompt_token_ids) - 1 :])
    packs = list(pack_groups(groups, 60, True))
    assert len(packs) > 1
    got = torch.cat([pack_logprobs(model, pack, 1.0) for pack in packs])
    torch.testing.assert_close(got, torch.cat(expected), rtol=1e-4, atol=1e-5)


def test_sharing_forwards_each_prompt_once():
    groups = batch_groups()
    completions = sum(len(s.token_ids) for g in groups for s in g.samples)
    shared = sum(pack.num_tokens for pack in pack_groups(groups, 60, True))
    alone = sum(pack.num_tokens for pack in pack_groups(groups, 60, False))
    assert shared == completions + sum(len(g.prompt_token_ids) for g in groups)
    assert alone == completions + sum(len(g.prompt_token_ids) * len(g.samples) for g in groups)


completion_lengths = st.lists(st.integers(1, 7), min_size=1, max_size=4)
lengths = st.lists(st.tuples(st.integers(1, 9), completion_lengths), min_size=1, max_size=6)


def groups_of(shapes):
    """Groups of such lengths of prompts and completions, each loss token a number of its own."""
    return [
        TrainGroup(
            GroupKey(claim, 0, "p"),
            tuple(range(prompt_length)),
            tuple(
                TrainSample(
                    array("i", [100 * claim + 10 * s + t for t in range(length)]), array("d", [-1.0] * length),
                    float(s), 0,
                )
                for s, length in enumerate(sample_lengths)
            ),
        )
        for claim, (prompt_length, sample_lengths) in enumerate(shapes)
    ]


def loss_tokens(groups):
    return [t for g in groups for s in g.samples for t in s.token_ids]


@given(lengths, st.integers(1, 80), st.booleans())
@settings(max_examples=60, deadline=None)
def test_packs_hold_every_loss_token_once_in_order(shapes, max_tokens, shared_prompt):
    groups = groups_of(shapes)
    packs = list(pack_groups(groups, max_tokens, shared_prompt))
    targets = np.concatenate([pack.targets for pack in packs])
    assert targets.tolist() == loss_tokens(groups)
    for pack in packs:
        rows, width = pack.token_ids.shape
        assert rows == 1 or rows * width <= max_tokens
        # The predictor is the token before the target in its own sequence: previous position, same or prompt segment.
        predictor = pack.position_ids[pack.target_rows, pack.predictor_columns]
        segments = pack.segment_ids[pack.target_rows, pack.predictor_columns]
        assert (predictor >= 0).all()
        assert (segments >= 0).all()


@given(lengths, st.integers(1, 300), st.booleans(), st.integers(2, 16))
@settings(max_examples=100, deadline=None)
def test_packs_in_few_shapes_hold_the_same(shapes, max_tokens, shared_prompt, columns):
    groups = groups_of(shapes)
    packs = list(pack_groups(groups, max_tokens, shared_prompt, columns))
    assert sorted(t for pack in packs for t in pack.targets) == sorted(loss_tokens(groups))
    exact = list(pack_groups(groups, max_tokens, shared_prompt))
    assert sum(pack.num_tokens for pack in packs) == sum(pack.num_tokens for pack in exact)
    heights, widths = zip(*(pack.token_ids.shape for pack in packs), strict=True)
    assert all(width % columns == 0 for width in widths)
    assert all(height == 1 or height * width <= max_tokens for height, width in zip(heights, widths, strict=True))
    assert list(widths) == sorted(widths, reverse=True)
    assert all(pack.segment_ids[:, 0].min() >= 0 for pack in packs)  # no row is nothing but padding


def test_equally_long_groups_are_spread_evenly():
    groups = groups_of([(9, [7, 7])] * 32)
    assert [pack.token_ids.shape for pack in pack_groups(groups, 230, True, 16)] == [(7, 32)] * 2 + [(6, 32)] * 3


def test_mask_shows_prompt_and_own_past_only():
    allowed = attention_allowed(torch.tensor([[0, 0, 1, 1, 2, -1]]))[0]
    assert allowed.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 1, 0],
        [0, 0, 0, 0, 0, 1],
    ]


def test_shares_have_about_equally_many_tokens_and_keep_their_order():
    groups = list(batch_groups(9))
    for count in (1, 2, 4, 12):
        shares = split_groups(groups, count)
        assert len(shares) == count
        assert sorted((g for share in shares for g in share), key=groups.index) == groups
        assert all(share == sorted(share, key=groups.index) for share in shares)
        loads = [sum(map(group_tokens, share)) for share in shares]
        assert max(loads) - min(loads) <= max(map(group_tokens, groups))
    assert split_groups(groups, 1) == [groups]
