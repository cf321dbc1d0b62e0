import json
from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhaiku.evaluation import Answer, answers_of, compare, summarize
from tests.tiny import make_scored

GOOD = "an old silent pond\na frog jumps into the pond\nsplash! silence again"
LONG = GOOD + "\nand then some"
BAD = "pond"


def group(claim, texts, topic="pond"):
    return [Answer(f"embedded/{claim:02}", topic, text) for text in texts]


def groups(*answers):
    return [answer for part in answers for answer in part]


def test_summary_of_two_prompts():
    summary = summarize(groups(group(0, [GOOD, LONG]), group(1, [BAD, BAD], topic="cat")))
    assert summary.structure_mean == pytest.approx((1 + 0.5625 + 0 + 0) / 4)
    assert summary.strict_575 == 0.25
    assert summary.topic_mention == 0.5
    assert (summary.prompts, summary.completions) == (2, 4)
    assert summary.structure_ci == (0.0, 0.78125), "two prompts: the interval spans both of their means"


def test_distinct_2_counts_word_pairs_within_lines():
    assert summarize(group(0, ["The frog the\nfrog", "the FROG"])).distinct_2 == pytest.approx(2 / 3)
    assert summarize(group(0, ["frog\nfrog"])).distinct_2 == 0.0


def test_to_dict_is_what_summary_json_holds():
    comparison = compare(group(0, [BAD]), group(0, [GOOD])).to_dict()
    assert json.loads(json.dumps(comparison)) == comparison
    assert list(comparison["base"]) == [
        "structure_mean", "structure_ci", "strict_575", "topic_mention", "distinct_2", "prompts", "completions",
    ]  # fmt: skip
    assert comparison["trained"]["structure_ci"] == [1.0, 1.0]


def test_the_interval_treats_the_completions_of_a_prompt_as_one():
    """Copies of a completion add no information, so they must not narrow the interval."""
    texts = [GOOD if claim % 2 else BAD for claim in range(20)]
    once = summarize(groups(*(group(claim, [text]) for claim, text in enumerate(texts))))
    eight_times = summarize(groups(*(group(claim, [text] * 8) for claim, text in enumerate(texts))))
    assert once.structure_ci == pytest.approx(eight_times.structure_ci)


def test_the_interval_agrees_with_theory():
    """20 prompts, half at 1 and half at 0: standard error 0.5 / sqrt(20)."""
    answers = groups(*(group(claim, [GOOD if claim % 2 else BAD]) for claim in range(20)))
    low, high = summarize(answers).structure_ci
    assert high - low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(20), rel=0.15)


def test_compare_pairs_by_prompt_whatever_the_order():
    base = groups(group(0, [BAD]), group(1, [GOOD]), group(2, [LONG]))
    trained = groups(group(2, [GOOD]), group(1, [GOOD]), group(0, [BAD]))
    differences = compare(base, trained).differences
    assert list(differences) == ["structure_mean", "strict_575", "topic_mention"]
    assert differences["structure_mean"].mean == pytest.approx(0.4375 / 3)
    assert differences["strict_575"].mean == pytest.approx(1 / 3)
    assert astuple(differences["topic_mention"]) == (0.0, 0.0, 0.0)
    assert differences["structure_mean"].low == 0.0 < differences["structure_mean"].high


def test_pairing_removes_what_the_prompts_differ_in():
    base = groups(*(group(claim, [GOOD if claim % 2 else BAD]) for claim in range(10)))
    same = compare(base, base).differences["structure_mean"]
    assert (same.mean, same.low, same.high) == (0.0, 0.0, 0.0)


@given(st.lists(st.tuples(st.sampled_from([GOOD, LONG, BAD]), st.sampled_from([GOOD, LONG, BAD])), min_size=1))
def test_comparing_the_other_way_round_changes_the_sign(pairs):
    base = groups(*(group(claim, [before]) for claim, (before, _) in enumerate(pairs)))
    trained = groups(*(group(claim, [after]) for claim, (_, after) in enumerate(pairs)))
    gain, loss = (compare(*both).differences["structure_mean"] for both in ((base, trained), (trained, base)))
    assert (gain.mean, gain.low, gain.high) == pytest.approx((-loss.mean, -loss.high, -loss.low), abs=1e-12)
    assert gain.low - 1e-12 <= gain.mean <= gain.high + 1e-12


def test_pairs_spread_over_prompts_and_take_first_completions():
    base = groups(*(group(claim, [f"base {claim}", GOOD]) for claim in range(10)))
    trained = groups(*(group(claim, [f"trained {claim}", GOOD]) for claim in reversed(range(10))))
    shown = compare(base, trained, num_pairs=4).pairs
    assert [(b.text, t.text) for b, t in shown] == [(f"base {i}", f"trained {i}") for i in (0, 2, 5, 7)]
    assert len(compare(base, trained, num_pairs=99).pairs) == 10


def test_evaluations_of_different_prompts_are_refused():
    with pytest.raises(ValueError, match=r"same prompts; got 2 .*embedded/01.*embedded/02.*Evaluate base and trained"):
        compare(groups(group(0, [GOOD]), group(1, [GOOD])), groups(group(0, [GOOD]), group(2, [GOOD])))


@pytest.mark.parametrize(("base", "trained"), [([], []), (group(0, [GOOD]), []), ([], group(0, [GOOD]))])
def test_an_empty_evaluation_is_refused(base, trained):
    with pytest.raises(ValueError, match="at least one answer; got none"):
        compare(base, trained)


def test_answers_are_the_texts_of_all_completions():
    scored = make_scored(3, [0.0, 1.0])
    prompt = scored.group.prompt
    assert answers_of([scored]) == [Answer(prompt.prompt_id, prompt.topic, f"poem {i} by 3") for i in range(2)]


def test_a_poem_that_is_no_language_is_not_strict():
    cats = "cat cat cat cat cat\ncat cat cat cat cat cat cat\ncat cat cat cat cat"
    summary = summarize(group(0, [cats, GOOD]))
    assert (summary.structure_mean, summary.strict_575) == (0.5, 0.5)
