import math
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhaiku.advantages import group_advantages, is_zero_variance
from rlhaiku.batching import make_batch, penalize_repeats, read_ahead
from rlhaiku.config import AlgorithmConfig
from rlhaiku.haiku.repeats import word_pairs
from rlhaiku.types import Completion, Group, GroupKey, Scored, ScoredGroup, Unscored
from tests.tiny import make_scored

rewards = st.lists(st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.625, 1.0, 1.25, 2.0]), min_size=2, max_size=16)


def test_hand_computed():
    # mean 0.5, deviations -0.5, 0, 0.5, sample std sqrt(0.5 / 2) = 0.5
    assert group_advantages([0.0, 0.5, 1.0], "std") == pytest.approx((-1.0, 0.0, 1.0), abs=1e-5)
    assert group_advantages([0.0, 0.5, 1.0], "none") == (-0.5, 0.0, 0.5)
    # mean 0.25, squares 3 * 0.0625 + 0.5625 = 0.75, sample std 0.5
    assert group_advantages([0.0, 0.0, 0.0, 1.0], "std") == pytest.approx((-0.5, -0.5, -0.5, 1.5), abs=1e-5)


@given(st.sampled_from([(0.0, 0.125), (0.0, 1.0), (1.01, 1.0), (2.0, 0.25)]))
def test_two_completions_give_the_same_advantage_whatever_the_gap(pair):
    low, high = sorted(group_advantages(pair, "std"))
    assert low == pytest.approx(-math.sqrt(0.5), abs=2e-4)
    assert high == pytest.approx(math.sqrt(0.5), abs=2e-4)


@given(rewards, st.sampled_from(["std", "none"]))
def test_sum_is_zero_and_order_is_kept(values, scale):
    advantages = group_advantages(values, scale)
    assert math.fsum(advantages) == pytest.approx(0.0, abs=1e-9)
    assert sorted(range(len(values)), key=lambda i: (values[i], i)) == sorted(
        range(len(values)), key=lambda i: (advantages[i], i)
    )


@given(st.floats(0, 2), st.integers(2, 9), st.sampled_from(["std", "none"]))
def test_zero_variance_is_exactly_zero(value, count, scale):
    assert group_advantages([value] * count, scale) == (0.0,) * count
    assert is_zero_variance([value] * count)


def test_one_reward_has_no_advantage():
    with pytest.raises(ValueError, match="at least 2 rewards"):
        group_advantages([1.0], "std")


def test_groups_are_normalised_alone():
    one = make_batch(0, [make_scored(0, [0.0, 1.0])], AlgorithmConfig(), 1.0).batch
    two = make_batch(0, [make_scored(0, [0.0, 1.0]), make_scored(1, [5.0, 9.0, 7.0])], AlgorithmConfig(), 1.0).batch
    assert two.groups[0] == one.groups[0]


def test_unscored_completions_do_not_move_the_others():
    algorithm = AlgorithmConfig()
    with_failure = make_batch(0, [make_scored(0, [0.0, 1.0, Unscored("timeout")])], algorithm, 1.0)
    advantages = [sample.advantage for sample in with_failure.batch.groups[0].samples]
    assert advantages == list(group_advantages([0.0, 1.0], "std"))
    assert not with_failure.dropped


def test_small_groups_are_dropped_and_named():
    groups = [make_scored(0, [1.0, Unscored("x"), Unscored("x")]), make_scored(1, [0.0, 1.0, 1.0])]
    made = make_batch(3, groups, AlgorithmConfig(min_scored=2), 1.0)
    assert [group.key.claim for group in made.batch.groups] == [1]
    assert made.dropped == {groups[0].key: "1 of 3 completions scored"}
    assert made.batch.num_samples == 3


def make_said(claim, *said):
    """A scored group of texts that earned 1 each; None could not be scored."""
    group = make_scored(claim, [1.0] * len(said)).group
    texts = tuple(Completion(array("i", [1]), array("d", [-1.0]), text or "the old frog", "stop", 0) for text in said)
    rewards = tuple(Unscored("down") if text is None else Scored(1.0, {"structure": 1.0}) for text in said)
    return ScoredGroup(Group(group.key, group.prompt, texts), rewards)


def test_repeats_cost_what_they_share_with_other_prompts():
    groups = [make_said(0, "the old frog", "moon rises", None), make_said(1, "an old frog"), make_said(2, "snow falls")]
    first, second, third = penalize_repeats(groups, 0.5)
    assert first.rewards[0] == Scored(1.0 - 0.5 * 0.25, {"structure": 1.0, "repeated": 0.25})  # 1 of 2 pairs, 1 of 2
    assert first.rewards[1:] == (Scored(1.0, {"structure": 1.0, "repeated": 0.0}), Unscored("down"))
    assert second.rewards[0].total == pytest.approx(1.0 - 0.5 * 0.25)
    assert third.rewards[0].total == 1.0
    assert [scored.group for scored in (first, second, third)] == [scored.group for scored in groups]


def test_without_a_penalty_rewards_stay_as_they_are():
    groups = [make_said(0, "the old frog"), make_said(1, "the old frog")]
    assert penalize_repeats(groups, 0.0) == tuple(groups)


@pytest.mark.parametrize(("penalty", "misses"), [(0.5, 0), (0.0, 2)])
def test_what_was_read_ahead_is_not_read_again(penalty, misses):
    groups = [make_said(0, "the old frog"), make_said(1, "snow falls")]
    word_pairs.cache_clear()
    read_ahead([scored.group for scored in groups], penalty)
    before = word_pairs.cache_info().misses
    penalize_repeats(groups, 0.5)
    assert word_pairs.cache_info().misses - before == misses


def test_two_groups_of_one_prompt_do_not_repeat_each_other():
    one = make_said(0, "the old frog", "snow falls")
    again = ScoredGroup(Group(GroupKey(7, 1, one.key.prompt_id), one.group.prompt, one.group.completions[:1]),
                        one.rewards[:1])
    found = penalize_repeats([one, again, make_said(2, "snow falls")], 1.0)
    assert [[reward.total for reward in scored.rewards] for scored in found] == [[1.0, 0.0], [1.0], [0.0]]


@given(st.permutations(range(3)), st.floats(0.01, 2.0))
def test_repeats_do_not_depend_on_the_order_of_groups(order, penalty):
    groups = [make_said(0, "the old frog", "a b c"), make_said(1, "a b c", "old frog"), make_said(2, "the old owl")]
    whole = penalize_repeats(groups, penalty)
    assert penalize_repeats([groups[i] for i in order], penalty) == tuple(whole[i] for i in order)
