"""Our shards and advantages beside what slime makes of the same samples, and read back as its trainers read them."""

import sys
from argparse import Namespace

import pytest
import ray
import torch

from actors.trainers.slime_shards import boxes, make_shards
from rlhaiku.batching import make_batch
from rlhaiku.config import AlgorithmConfig
from rlhaiku.types import Unscored
from tests.actors.real_slime.source import function_of
from tests.tiny import make_scored

pytestmark = [pytest.mark.slime, pytest.mark.filterwarnings("ignore")]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

EVEN = [[0.0, 1.0, 0.5, 0.25], [1.0, 1.0, 1.0, 0.0], [0.1, 0.9, 0.4, 0.4]]
UNEVEN = [[0.0, 1.0, 0.5, Unscored("judge")], [9.0, 8.0, Unscored("judge"), Unscored("judge")], [0.1, 0.9, 0.4, 0.4]]
FOR_METRICS = {"truncated", "raw_reward", "local_raw_reward", "sample_indices", "rollout_ids", "source_names"}
"""What slime sends beyond our shards."""
PARALLEL = {"dp_size": 2, "cp_size": 1, "vpp_size": 1, "microbatch_group_size_per_vp_stage": 1}


def args_with(**changes):
    always = {
        "num_steps_per_rollout": 1, "use_dynamic_batch_size": True, "max_tokens_per_gpu": 24, "micro_batch_size": 1,
        "balance_data": False, "balance_by_flops": False, "advantage_estimator": "grpo", "rewards_normalization": True,
        "grpo_std_normalization": True, "n_samples_per_prompt": 4, "rollout_batch_size": 3, "reward_key": None,
        "rollout_top_p": 1.0,
    }  # fmt: skip
    return Namespace(**always | changes)


def batch_of(totals):
    groups = [make_scored(claim, rewards) for claim, rewards in enumerate(totals)]
    return make_batch(0, groups, AlgorithmConfig(), 1.0).batch


def samples_of(totals):
    """The same completions as slime's Samples; what has no reward is not there."""
    from slime.utils.types import Sample

    samples = []
    for claim, rewards in enumerate(totals):
        group = make_scored(claim, rewards).group
        for completion, reward in zip(group.completions, rewards, strict=True):
            if isinstance(reward, Unscored):
                continue
            sample = Sample(group_index=claim, index=len(samples), tokens=list(group.prompt.token_ids), reward=reward)
            sample.append_response_tokens(
                tokens=list(completion.token_ids), log_probs=list(completion.logprobs),
                meta_info={"finish_reason": {"type": "stop"}, "weight_version": "0"},
            )
            samples.append(sample)
    return samples


class Manager:
    """The part of slime's RolloutManager that turns samples into shards."""

    def __init__(self, args):
        from slime.observability.rollout_data_utils import tensorize_rollout_data_for_training
        from slime.utils.dp_schedule import build_dp_schedule
        from slime.utils.misc import Box
        from slime.utils.types import Sample

        self.args, self.train_parallel_config = args, PARALLEL
        self.custom_reward_post_process_func = self.custom_convert_samples_to_train_data_func = None
        names = {
            "torch": torch, "ray": ray, "Box": Box, "Sample": Sample, "build_dp_schedule": build_dp_schedule,
            "tensorize_rollout_data_for_training": tensorize_rollout_data_for_training,
            "get_source": lambda sample: "haiku",
        }  # fmt: skip
        for method in ("_post_process_rewards", "_convert_samples_to_train_data", "_split_train_data_by_dp"):
            function = function_of("ray/rollout.py", f"RolloutManager.{method}", names)
            setattr(self, method, function.__get__(self))


def read_back(sent):
    """What each data-parallel rank of slime's trainers has in its hands before a train step."""
    from slime.utils.data import process_rollout_data

    return [process_rollout_data(Namespace(), sent, rank, len(sent)) for rank in range(len(sent))]


def assert_equal(ours, theirs):
    if isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    elif isinstance(ours, list) and ours and isinstance(ours[0], torch.Tensor):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            assert_equal(one, other)
    else:
        assert ours == theirs


@pytest.mark.parametrize("num_steps", [1, 3])
def test_even_groups_become_the_shards_that_slime_makes(cluster, num_steps):
    args = args_with(num_steps_per_rollout=num_steps, global_batch_size=12 // num_steps)
    manager = Manager(args)
    theirs = read_back(manager._split_train_data_by_dp(manager._convert_samples_to_train_data(samples_of(EVEN))))
    ours = read_back(boxes(make_shards(args, PARALLEL, batch_of(EVEN))))
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.pop("rewards") == pytest.approx(other.pop("rewards"), abs=1e-5)
        for key, value in mine.items():
            assert_equal(value, other[key])
        assert set(other) - set(mine) <= FOR_METRICS


def test_the_dtypes_are_those_trainers_expect(cluster):
    for shard in read_back(boxes(make_shards(args_with(), PARALLEL, batch_of(UNEVEN)))):
        assert {tensor.dtype for tensor in shard["tokens"]} == {torch.int64}
        assert {tensor.dtype for tensor in shard["loss_masks"]} == {torch.int32}
        assert {tensor.dtype for tensor in shard["rollout_log_probs"]} == {torch.float32}
        assert shard["rollout_mask_sums"].dtype == torch.float32
        assert shard["rollout_mask_sums"].tolist() == [mask.sum().item() for mask in shard["loss_masks"]]
        assert shard["total_lengths"] == [len(tokens) for tokens in shard["tokens"]]  # its own now


def test_the_shards_that_were_made_are_not_changed_by_sending_them(cluster):
    shards = make_shards(args_with(), PARALLEL, batch_of(EVEN))
    boxes(shards)
    assert isinstance(shards[0]["tokens"][0], list)


def advantages(totals):
    return [sample.advantage for group in batch_of(totals).groups for sample in group.samples]


def slime_advantages(totals):
    return Manager(args_with())._post_process_rewards(samples_of(totals))[1]


def test_advantages_of_even_groups_are_slimes():
    assert advantages(EVEN) == pytest.approx(slime_advantages(EVEN), abs=1e-5)


def test_advantages_of_uneven_groups_are_right_where_slimes_are_not():
    """slime normalises them over the whole batch (its issues 1414 and 2230): a bad poem of a good group looks good."""
    ours, theirs = advantages(UNEVEN), slime_advantages(UNEVEN)
    start = 0
    for rewards in UNEVEN:
        scored = torch.tensor([reward for reward in rewards if not isinstance(reward, Unscored)])
        expected = (scored - scored.mean()) / (scored.std() + 1e-6)
        assert ours[start : start + len(scored)] == pytest.approx(expected.tolist(), abs=1e-5)
        start += len(scored)
    assert theirs[4] > 0 > ours[4]  # 8, the worse of its group of 9 and 8


def test_our_completions_fit_slimes_sample():
    """Logprobs are given per trainable token, and the mask grows with them."""
    from slime.utils.types import Sample

    for sample in samples_of(EVEN):
        assert sample.status == Sample.Status.COMPLETED and sample.weight_versions == ["0"]
        assert sample.response_length == len(sample.rollout_log_probs) == sum(sample.loss_mask)
        assert Sample.from_dict(sample.to_dict()).tokens == sample.tokens
