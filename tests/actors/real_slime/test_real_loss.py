"""The loss of slime's Megatron trainer on our shards, with Megatron's process groups over gloo, beside our own loss."""

from argparse import Namespace
from array import array

import pytest
import torch

from actors.trainers.slime_shards import make_shards
from rlhaiku.losses import LossSettings, policy_loss
from tests.actors.test_slime_shards import batch_of, samples_of

pytestmark = [pytest.mark.slime, pytest.mark.filterwarnings("ignore")]
VOCAB = 32
LOW, HIGH = 0.2, 0.28


@pytest.fixture(scope="module")
def loss_module(tmp_path_factory):
    """slime's loss.py in a world of one rank."""
    pytest.importorskip("megatron.training.arguments", exc_type=ImportError)
    import torch.distributed as dist
    from megatron.core import parallel_state

    store = tmp_path_factory.mktemp("store") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    was_disabled, torch._dynamo.config.disable = torch._dynamo.config.disable, True  # no compiler is needed for numbers
    from slime.backends.megatron_utils import loss

    yield loss
    torch._dynamo.config.disable = was_disabled
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


def small_batch(sizes):
    """`batch_of` with token ids of a small vocabulary and likely logprobs."""
    batch = batch_of(sizes)
    groups = []
    for group in batch.groups:
        samples = tuple(
            type(sample)(
                array("i", [token % VOCAB for token in sample.token_ids]),
                array("d", [-3.5 + 0.1 * i for i in range(len(sample.token_ids))]), sample.advantage, 0,
            )
            for sample in group.samples
        )
        groups.append(type(group)(group.key, group.prompt_token_ids, samples))
    return type(batch)(0, 1.0, tuple(groups))


def args_with(per_token, temperature, kl):
    return Namespace(
        num_steps_per_rollout=1, use_dynamic_batch_size=True, max_tokens_per_gpu=24, micro_batch_size=1,
        balance_data=False, balance_by_flops=False, advantage_estimator="grpo", eps_clip=LOW, eps_clip_high=HIGH,
        eps_clip_c=None, use_rollout_logprobs=True, calculate_per_token_loss=per_token, rollout_temperature=temperature,
        loss_type="policy_loss", recompute_loss_function=False, allgather_cp=False, use_opsm=False, use_tis=False,
        get_mismatch_metrics=False, entropy_coef=0.0, kl_coef=0.0, use_kl_loss=kl > 0, kl_loss_coef=kl,
        kl_loss_type="k3", use_unbiased_kl=False, log_probs_chunk_size=-1, normalize_advantages=False, use_opd=False,
        custom_advantage_function_path=None, custom_pg_loss_reducer_function_path=None, rollout_top_p=1.0,
        use_critic=False, save_debug_train_data=None, opd_kl_coef=0.0,
    )  # fmt: skip


def logits_of(position, length):
    return torch.randn(length, VOCAB, generator=torch.Generator().manual_seed(position))


def logprobs_of(logits, tokens, num_completion, temperature):
    """Of a sequence's completion tokens: each is predicted by the position before it."""
    logprobs = torch.log_softmax(logits / temperature, -1)
    targets = torch.tensor(tokens[-num_completion:])
    return logprobs[-num_completion - 1 : -1].gather(1, targets[:, None])[:, 0]


def slime_loss(loss, args, shards, temperature):
    """Loss of an optimizer step and its gradient by position, added up over ranks and passes as Megatron does."""
    from slime.observability.rollout_data_utils import tensorize_rollout_data_for_training

    total, num_tokens, gradients = 0.0, 0.0, {}
    for shard in shards:
        shard["total_lengths"] = [shard["total_lengths"][position] for position in shard["partition"]]
        tensorize_rollout_data_for_training(shard)
        shard["ref_log_probs"] = [
            logprobs_of(logits_of(1000 + position, len(tokens)), tokens.tolist(), length, temperature)
            for position, tokens, length in zip(
                shard["partition"], shard["tokens"], shard["response_lengths"], strict=True
            )
        ]
        loss.compute_advantages_and_returns(args, shard)
        [num_passes], [num_samples] = shard["num_microbatches"], shard["global_batch_sizes"]
        for each in shard["micro_batch_indices"]:
            batch = {key: [shard[key][i] for i in each] for key in (
                "total_lengths", "response_lengths", "loss_masks", "advantages", "rollout_log_probs", "ref_log_probs",
                "rollout_mask_sums",
            )} | {"unconcat_tokens": [shard["tokens"][i] for i in each]}  # fmt: skip
            positions = [shard["partition"][i] for i in each]
            parts = [
                logits_of(position, length).requires_grad_()
                for position, length in zip(positions, batch["total_lengths"], strict=True)
            ]
            value, normaliser, _ = loss.loss_function(args, batch, num_passes, num_samples, torch.cat(parts)[None])
            # Megatron divides by the passes of a rank, or by all tokens; ranks are averaged (there is one here).
            share = value if args.calculate_per_token_loss else value / num_passes
            share.backward()
            total += share.item()
            num_tokens += float(normaliser) if args.calculate_per_token_loss else 0.0
            for position, part in zip(positions, parts, strict=True):
                gradients.setdefault(position, part.grad)
    divisor = num_tokens or 1.0
    return total / divisor, {position: gradient / divisor for position, gradient in gradients.items()}


def our_loss(batch, aggregation, temperature, kl):
    parts, trainer, reference = [], [], []
    for position, (prompt, sample) in enumerate(samples_of(batch)):
        tokens, length = [*prompt, *sample.token_ids], len(sample.token_ids)
        parts.append(logits_of(position, len(tokens)).requires_grad_())
        trainer.append(logprobs_of(parts[-1], tokens, length, temperature))
        reference.append(logprobs_of(logits_of(1000 + position, len(tokens)), tokens, length, temperature))
    samples = [sample for _, sample in samples_of(batch)]
    lengths = torch.tensor([len(sample.token_ids) for sample in samples])
    settings = LossSettings(LOW, HIGH, kl, aggregation, batch.num_loss_tokens, batch.num_samples)
    output = policy_loss(
        torch.cat(trainer),
        torch.tensor([logprob for sample in samples for logprob in sample.rollout_logprobs]),
        torch.tensor([sample.advantage for sample in samples]).repeat_interleave(lengths),
        lengths.repeat_interleave(lengths),
        settings,
        torch.cat(reference) if kl else None,
    )
    output.loss.backward()
    return output, [part.grad for part in parts]


@pytest.mark.parametrize("num_ranks", [1, 2])
@pytest.mark.parametrize(("aggregation", "temperature", "kl"), [
    ("token", 1.0, 0.0), ("sequence", 1.0, 0.0), ("token", 0.7, 0.1), ("sequence", 0.7, 0.1),
])
def test_loss_and_gradient_are_ours(loss_module, num_ranks, aggregation, temperature, kl):
    batch = small_batch((4, 1, 3))
    parallel = {"dp_size": num_ranks, "cp_size": 1, "vpp_size": 1, "microbatch_group_size_per_vp_stage": 1}
    args = args_with(aggregation == "token", temperature, kl)
    theirs, their_gradients = slime_loss(loss_module, args, make_shards(args, parallel, batch), temperature)
    ours, our_gradients = our_loss(batch, aggregation, temperature, kl)
    assert 0 < ours.clipped < batch.num_loss_tokens  # both branches of the clip are in the numbers
    assert theirs == pytest.approx(ours.loss.item(), rel=1e-5)
    for position, gradient in enumerate(our_gradients):
        torch.testing.assert_close(their_gradients[position], gradient, rtol=1e-4, atol=1e-7)


def test_masked_fillers_change_no_mean_over_sequences(loss_module):
    batch = small_batch((2,))
    parallel = {"dp_size": 4, "cp_size": 1, "vpp_size": 1, "microbatch_group_size_per_vp_stage": 1}
    args = args_with(False, 1.0, 0.0)
    theirs, their_gradients = slime_loss(loss_module, args, make_shards(args, parallel, batch), 1.0)
    ours, _ = our_loss(batch, "sequence", 1.0, 0.0)
    assert theirs == pytest.approx(ours.loss.item(), rel=1e-5)
    assert not their_gradients[2].any() and not their_gradients[3].any()


def test_the_policy_loss_alone(loss_module):
    from slime.utils.ppo_utils import compute_policy_loss

    log_ratio = torch.linspace(-0.6, 0.6, 25)
    advantages = torch.tensor([1.5, -0.5]).repeat_interleave(25)
    losses, clipped = compute_policy_loss(-log_ratio.repeat(2), advantages, LOW, HIGH)
    one = torch.ones(50, dtype=torch.long)
    ours = policy_loss(
        log_ratio.repeat(2), torch.zeros(50), advantages, one, LossSettings(LOW, HIGH, 0.0, "token", 50, 50)
    )
    assert losses.mean().item() == pytest.approx(ours.loss.item(), rel=1e-6)
    assert clipped.sum() == ours.clipped


def test_trainers_can_log_our_shards(loss_module, monkeypatch):
    """slime sums every list of a shard that it does not know, and stops at what it cannot sum."""
    from slime.observability import train_metric_utils

    logged = {}
    monkeypatch.setattr(train_metric_utils.logging_utils, "log", lambda args, metrics, step_key: logged.update(metrics))
    args = args_with(True, 1.0, 0.0)
    vars(args).update(
        log_multi_turn=False, log_passrate=False, log_correct_samples=False, ci_test=False,
        wandb_always_use_train_step=False, rollout_batch_size=2, n_samples_per_prompt=4, global_batch_size=8,
    )
    parallel = {"dp_size": 1, "cp_size": 1, "vpp_size": 1, "microbatch_group_size_per_vp_stage": 1}
    batch = small_batch((4, 3))
    [shard] = make_shards(args, parallel, batch)
    from slime.observability.rollout_data_utils import tensorize_rollout_data_for_training

    tensorize_rollout_data_for_training(shard)
    loss_module.compute_advantages_and_returns(args, shard)
    train_metric_utils.log_rollout_data(0, args, shard)
    mean = sum(sample.advantage for _, sample in samples_of(batch)) / batch.num_samples
    assert logged["rollout/rewards"] == pytest.approx(mean) == logged["rollout/advantages"]

