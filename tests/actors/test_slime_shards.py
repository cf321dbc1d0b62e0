"""Train batches as slime's shards: with slime's own schedule where it is installed, else with one that cuts evenly."""

import sys
import types
from argparse import Namespace
from array import array

import pytest

from actors.trainers.slime_shards import make_shards
from rlhaiku.errors import BatchEmpty
from rlhaiku.types import GroupKey, TrainBatch, TrainGroup, TrainSample


def even_schedule(args, parallel, total_lengths, *, global_batch_size, rollout_indices):
    """Sample i goes to rank i modulo ranks; all ranks get as many passes, and at least one, as slime demands."""
    ranks, num_passes = range(parallel["dp_size"]), len(total_lengths) // parallel["dp_size"]
    assert num_passes > 0 and global_batch_size == len(total_lengths) == len(rollout_indices)
    parts = [list(range(rank, len(total_lengths), len(ranks))) for rank in ranks]
    firsts = [len(part) - num_passes + 1 for part in parts]  # one pass takes what is left over
    passes = [
        [list(range(first)), *([i] for i in range(first, len(part)))]
        for first, part in zip(firsts, parts, strict=True)
    ]
    return parts, passes, [num_passes], [global_batch_size]


@pytest.fixture(params=["even", pytest.param("slime", marks=pytest.mark.slime)])
def schedule(request, monkeypatch):
    if request.param == "slime":
        return
    for name in ("slime", "slime.utils", "slime.utils.dp_schedule"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["slime.utils.dp_schedule"].build_dp_schedule = even_schedule


def batch_of(sizes, lengths=(3, 5, 2, 4)):
    """A batch with groups of these many samples; every sample has tokens and an advantage of its own."""
    groups, number = [], 0
    for claim, size in enumerate(sizes):
        samples = []
        for _ in range(size):
            length = lengths[number % len(lengths)]
            tokens = array("i", range(1000 * (number + 1), 1000 * (number + 1) + length))
            logprobs = array("d", [-0.1 * (number + 1 + i) for i in range(length)])
            samples.append(TrainSample(tokens, logprobs, number - 2.5, 0))
            number += 1
        prompt = tuple(range(10 + claim, 14 + 2 * claim))
        groups.append(TrainGroup(GroupKey(claim, 0, f"p{claim}"), prompt, tuple(samples)))
    return TrainBatch(0, 1.0, tuple(groups))


def shards_of(batch, num_ranks, num_steps=1, max_tokens=24):
    args = Namespace(
        num_steps_per_rollout=num_steps, use_dynamic_batch_size=True, max_tokens_per_gpu=max_tokens,
        micro_batch_size=1, balance_data=False, balance_by_flops=False,
    )
    parallel = {"dp_size": num_ranks, "cp_size": 1, "vpp_size": 1, "microbatch_group_size_per_vp_stage": 1}
    return make_shards(args, parallel, batch)


def samples_of(batch):
    return [(group.prompt_token_ids, sample) for group in batch.groups for sample in group.samples]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("sizes", [(4, 4, 4), (4, 1, 3, 3), (2, 2, 1)])
def test_every_sample_is_in_one_shard_with_all_that_belongs_to_it(schedule, sizes, num_ranks):
    batch = batch_of(sizes)
    expected = samples_of(batch)
    shards = shards_of(batch, num_ranks)
    assert sorted(position for shard in shards for position in shard["partition"]) == list(range(len(expected)))
    for shard in shards:
        assert shard["total_lengths"] == [len(prompt) + len(sample.token_ids) for prompt, sample in expected]
        for i, position in enumerate(shard["partition"]):
            prompt, sample = expected[position]
            assert shard["tokens"][i] == [*prompt, *sample.token_ids]
            assert shard["response_lengths"][i] == len(sample.token_ids)
            assert shard["rollout_log_probs"][i] == list(sample.rollout_logprobs)
            assert shard["loss_masks"][i] == [1] * len(sample.token_ids)
            assert shard["rollout_mask_sums"][i] == len(sample.token_ids)
            assert shard["rewards"][i] == sample.advantage


def check_passes(shards, num_steps, max_tokens):
    """What slime relies on: the same number of passes on every rank, each sample in one of them, none too long."""
    for shard in shards:
        passes = shard["micro_batch_indices"]
        assert len(passes) == sum(shard["num_microbatches"]) == sum(shards[0]["num_microbatches"])
        assert [i for each in passes for i in each] == list(range(len(shard["partition"])))
        assert len(shard["num_microbatches"]) == len(shard["global_batch_sizes"]) == num_steps
        for each in passes:
            assert len(each) == 1 or sum(len(shard["tokens"][i]) for i in each) <= max_tokens


def test_passes_of_one_optimizer_step(schedule):
    shards = shards_of(batch_of((4, 4, 4)), 2)
    check_passes(shards, 1, 24)
    assert shards[0]["global_batch_sizes"] == [12]


def test_optimizer_steps_are_cut_by_group_and_lose_no_sample(schedule):
    batch = batch_of((4, 2, 3, 1))  # 6 samples in the first step, 4 in the second
    shards = shards_of(batch, 2, num_steps=2)
    check_passes(shards, 2, 24)
    assert shards[0]["global_batch_sizes"] == [6, 4]
    for shard in shards:
        first = shard["num_microbatches"][0]
        early, late = shard["micro_batch_indices"][:first], shard["micro_batch_indices"][first:]
        assert {shard["partition"][i] for each in early for i in each} <= set(range(6))
        assert {shard["partition"][i] for each in late for i in each} <= set(range(6, 10))


def test_fewer_samples_than_ranks_are_filled_up_with_nothing_to_learn(schedule):
    shards = shards_of(batch_of((2,)), 4)
    check_passes(shards, 1, 24)
    assert [len(shard["tokens"]) for shard in shards] == [1] * 4
    assert sorted(sum(shard["loss_masks"][0]) > 0 for shard in shards) == [False, False, True, True]
    assert shards[0]["global_batch_sizes"] == [2]  # the mean is over what there is
    for shard in shards:
        is_filler = not sum(shard["loss_masks"][0])
        assert (shard["rewards"][0] == 0.0 and shard["rollout_mask_sums"] == [0.0]) == is_filler
        assert len(shard["rollout_log_probs"][0]) == len(shard["loss_masks"][0]) == shard["response_lengths"][0] > 0


def test_a_completion_without_tokens_is_left_out(schedule):
    batch = batch_of((2, 2))
    empty = TrainGroup(GroupKey(2, 0, "p2"), (1, 2), (TrainSample(array("i"), array("d"), 1.0, 0),))
    shards = shards_of(TrainBatch(0, 1.0, (*batch.groups, empty)), 2)
    assert shards[0]["global_batch_sizes"] == [4] and len(shards[0]["total_lengths"]) == 4


def test_a_step_without_samples_is_left_out(schedule):
    shards = shards_of(batch_of((4,)), 2, num_steps=2)
    check_passes(shards, 1, 24)


def test_nothing_to_learn_from(schedule):
    with pytest.raises(BatchEmpty):
        shards_of(TrainBatch(3, 1.0, ()), 2)


def test_only_numbers_and_lists_of_numbers_travel(schedule):
    """slime sums each list it does not know, and fails on strings and on empty lists."""
    def is_summable(value):
        return isinstance(value, int | float) or (len(value) > 0 and all(map(is_summable, value)))

    for shard in shards_of(batch_of((4, 2, 2)), 2):
        assert all(isinstance(value, list) and is_summable(value) for value in shard.values())
