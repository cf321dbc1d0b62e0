import math

import pytest
import torch

from rlhaiku.losses import LossSettings, policy_loss


def settings(**changes):
    values = {"clip_low": 0.2, "clip_high": 0.28, "kl_coef": 0.0, "aggregation": "token", "num_tokens": 4,
              "num_sequences": 2}
    return LossSettings(**values | changes)


def call(ratios, advantages, lengths, config, reference=None):
    rollout = torch.full((len(ratios),), -1.0)
    trainer = (rollout + torch.tensor(ratios).log()).requires_grad_()
    output = policy_loss(trainer, rollout, torch.tensor(advantages), torch.tensor(lengths), config, reference)
    output.loss.backward()
    return output, trainer.grad


def test_hand_computed_with_both_clips():
    # ratio 1.5 with A=1 counts as 1.28; ratio 0.5 with A=-1 counts as -0.8; 1.5 with A=-1 and 0.5 with A=1 are not cut
    output, gradient = call([1.5, 0.5, 1.5, 0.5], [1.0, -1.0, -1.0, 1.0], [4.0] * 4, settings())
    assert output.loss.item() == pytest.approx(-(1.28 - 0.8 - 1.5 + 0.5) / 4)
    assert output.clipped.item() == 2
    assert gradient[:2].tolist() == [0.0, 0.0]
    assert gradient[2:].tolist() == pytest.approx([1.5 / 4, -0.5 / 4])


def test_sequence_mean_weighs_sequences_equally():
    output, _ = call([1.0] * 4, [1.0, -1.0, -1.0, -1.0], [1.0, 3.0, 3.0, 3.0], settings(aggregation="sequence"))
    assert output.loss.item() == pytest.approx((-1.0 + 1.0) / 2, abs=1e-6)
    token_mean, _ = call([1.0] * 4, [1.0, -1.0, -1.0, -1.0], [1.0, 3.0, 3.0, 3.0], settings())
    assert token_mean.loss.item() == pytest.approx(0.5)


def test_kl_is_k3_and_enters_with_its_coefficient():
    reference = torch.full((4,), -1.0) + math.log(2)
    output, _ = call([1.0] * 4, [0.0] * 4, [2.0] * 4, settings(kl_coef=0.1), reference)
    k3 = 2 - 1 - math.log(2)
    assert output.kl.item() == pytest.approx(4 * k3, rel=1e-5)
    assert output.loss.item() == pytest.approx(0.1 * k3, rel=1e-5)


def test_gap_is_the_distance_of_the_two_logprobs():
    output, _ = call([math.e, 1.0, 1 / math.e, 1.0], [0.0] * 4, [2.0] * 4, settings())
    assert output.gap.item() == pytest.approx(2.0)


def test_truncation_bounds_the_weight_and_keeps_the_gradient():
    # A = -1: ratios 1.5 and 6 count with 1.5 and 2; A = 1: 6 is above the clip anyway, 0.5 below the bound
    ratios, advantages = [1.5, 6.0, 6.0, 0.5], [-1.0, -1.0, 1.0, 1.0]
    output, gradient = call(ratios, advantages, [4.0] * 4, settings(max_ratio=2.0))
    assert output.loss.item() == pytest.approx((1.5 + 2.0 - 1.28 - 0.5) / 4)
    assert gradient.tolist() == pytest.approx([1.5 / 4, 2.0 / 4, 0.0, -0.5 / 4])
    assert (output.truncated.item(), output.clipped.item()) == (2, 1)
    output, gradient = call(ratios, advantages, [4.0] * 4, settings())
    assert gradient[1].item() == pytest.approx(6.0 / 4)
    assert output.truncated.item() == 0


def test_below_the_bound_truncation_changes_no_bit():
    torch.manual_seed(0)
    ratios, advantages = torch.empty(64).uniform_(0.2, 3.0).tolist(), torch.randn(64).tolist()
    (plain, plain_gradient), (bounded, gradient) = (
        call(ratios, advantages, [4.0] * 64, settings(max_ratio=most)) for most in (0.0, 3.5)
    )
    assert torch.equal(plain.loss, bounded.loss)
    assert torch.equal(plain_gradient, gradient)


def test_the_truncated_gradient_is_that_of_a_fixed_weight():
    """min(r, C) A grad log pi, on a softmax of five tokens: against the same with the weights as numbers."""
    torch.manual_seed(0)
    logits, tokens = torch.randn(8, 5, dtype=torch.float64, requires_grad=True), torch.randint(5, (8,))
    rollout, advantages = torch.full((8,), -3.5, dtype=torch.float64), -torch.rand(8, dtype=torch.float64)
    chosen = logits.log_softmax(-1)[torch.arange(8), tokens]
    weights = (chosen - rollout).exp().detach()
    assert (weights > 2).any() and (weights < 2).any()
    loss = -(weights.clamp(max=2.0) * advantages * chosen).sum() / 4
    (expected,) = torch.autograd.grad(loss, logits, retain_graph=True)
    config = settings(max_ratio=2.0, clip_low=0.9999)
    output = policy_loss(chosen, rollout, advantages, torch.ones(8), config)
    (gradient,) = torch.autograd.grad(output.loss, logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
