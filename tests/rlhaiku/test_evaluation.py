import json
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhaiku.evaluation import compare, side_by_side, summarize
from rlhaiku.types import EVAL_PASS, Completion, Group, GroupKey, Prompt, ScoredGroup, Unscored

GOOD = "an old silent pond\na frog jumps into the pond\nsplash! silence again"
LONG = GOOD + "\nand then some"
BAD = "pond"


def group(claim, texts, topic="pond"):
    prompt = Prompt(f"embedded/{claim:02}", topic, "...", (1,))
    completions = tuple(Completion((1,), (0.0,), text, "stop", 0) for text in texts)
    # The rewards say nothing: an evaluation reads the texts.
    key = GroupKey(claim, EVAL_PASS, prompt.prompt_id)
    return ScoredGroup(Group(key, prompt, completions), tuple(Unscored("not needed") for _ in texts))


def test_summary_of_two_prompts():
    summary = summarize([group(0, [GOOD, LONG]), group(1, [BAD, BAD], topic="cat")])
    assert summary.structure_mean == pytest.approx((1 + 0.75 + 0 + 0) / 4)
    assert summary.strict_575 == 0.25
    assert summary.topic_mention == 0.5
    assert (summary.prompts, summary.completions) == (2, 4)
    assert summary.structure_ci == (0.0, 0.875), "two prompts: the interval spans both of their means"


def test_distinct_2_counts_word_pairs_within_lines():
    assert summarize([group(0, ["The frog the\nfrog", "the FROG"])]).distinct_2 == pytest.approx(2 / 3)
    assert summarize([group(0, ["frog\nfrog"])]).distinct_2 == 0.0


def test_to_dict_is_what_summary_json_holds():
    summary = summarize([group(0, [GOOD])]).to_dict()
    assert json.loads(json.dumps(summary)) == summary
    assert list(summary) == [
        "structure_mean", "structure_ci", "strict_575", "topic_mention", "distinct_2", "prompts", "completions",
    ]  # fmt: skip
    assert summary["structure_ci"] == [1.0, 1.0]


def test_the_interval_treats_the_completions_of_a_prompt_as_one():
    """Copies of a completion add no information, so they must not narrow the interval."""
    texts = [GOOD if claim % 2 else BAD for claim in range(20)]
    once = summarize([group(claim, [text]) for claim, text in enumerate(texts)])
    eight_times = summarize([group(claim, [text] * 8) for claim, text in enumerate(texts)])
    assert once.structure_ci == pytest.approx(eight_times.structure_ci)


def test_the_interval_agrees_with_theory():
    """20 prompts, half at 1 and half at 0: standard error 0.5 / sqrt(20)."""
    low, high = summarize([group(claim, [GOOD if claim % 2 else BAD]) for claim in range(20)]).structure_ci
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(20), rel=0.15)


def test_compare_pairs_by_prompt_whatever_the_order():
    base = [group(0, [BAD]), group(1, [GOOD]), group(2, [LONG])]
    trained = [group(2, [GOOD]), group(1, [GOOD]), group(0, [BAD])]
    differences = compare(base, trained)
    assert list(differences) == ["structure", "strict_575", "topic_mention"]
    assert differences["structure"].mean == pytest.approx(0.25 / 3)
    assert differences["strict_575"].mean == pytest.approx(1 / 3)
    assert astuple(differences["topic_mention"]) == (0.0, 0.0, 0.0)
    assert differences["structure"].low == 0.0 < differences["structure"].high


def test_pairing_removes_what_the_prompts_differ_in():
    """Prompts differ widely, training gains the same everywhere: the interval of the gain has no width."""
    base = [group(claim, ["\n".join(["moon"] * 9) if claim % 2 else "moon\n" + GOOD[19:]]) for claim in range(10)]
    same = compare(base, base)["structure"]
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)


@settings(max_examples=15, derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([GOOD, LONG, BAD]), st.sampled_from([GOOD, LONG, BAD])), min_size=1))
def test_comparing_the_other_way_round_changes_the_sign(pairs):
    base = [group(claim, [before]) for claim, (before, _) in enumerate(pairs)]
    trained = [group(claim, [after]) for claim, (_, after) in enumerate(pairs)]
    gain, loss = compare(base, trained)["structure"], compare(trained, base)["structure"]
    assert (gain.mean, gain.low, gain.high) == pytest.approx((-loss.mean, -loss.high, -loss.low), abs=1e-12)
    assert gain.low - 1e-12 <= gain.mean <= gain.high + 1e-12


def test_side_by_side_spreads_over_prompts_and_takes_first_completions():
    base = [group(claim, [f"base {claim}", GOOD]) for claim in range(10)]
    trained = [group(claim, [f"trained {claim}", GOOD]) for claim in reversed(range(10))]
    shown = side_by_side(base, trained, n=4)
    assert [(before, after) for _, before, after in shown] == [
        (f"base {claim}", f"trained {claim}") for claim in (0, 2, 5, 7)
    ]
    assert [prompt.prompt_id for prompt, _, _ in shown] == ["embedded/00", "embedded/02", "embedded/05", "embedded/07"]
    assert len(side_by_side(base, trained, n=99)) == 10


@pytest.mark.parametrize("judge", [compare, side_by_side])
def test_evaluations_of_different_prompts_are_refused(judge):
    with pytest.raises(ValueError, match=r"same prompts; got 2 .*embedded/01.*embedded/02.*Evaluate base and trained"):
        judge([group(0, [GOOD]), group(1, [GOOD])], [group(0, [GOOD]), group(2, [GOOD])])


@pytest.mark.parametrize("judge", [compare, side_by_side])
@pytest.mark.parametrize(("base", "trained"), [([], []), ([group(0, [GOOD])], []), ([], [group(0, [GOOD])])])
def test_an_empty_evaluation_is_refused(judge, base, trained):
    with pytest.raises(ValueError, match="at least one group; got none"):
        judge(base, trained)


def test_nothing_cannot_be_summed_up():
    with pytest.raises(ValueError, match="at least one group; got none"):
        summarize([])
    with pytest.raises(ValueError, match=r"every group needs a completion; got none for .*embedded/00"):
        summarize([group(0, [])])
