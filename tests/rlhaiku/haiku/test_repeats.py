import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhaiku.haiku.repeats import distinct_pairs, repeated_shares, word_pairs

WORDS = st.lists(st.sampled_from(["frog", "pond", "old", "the", "leaps", "moon"]), max_size=6).map(" ".join)
TEXTS = st.lists(WORDS, min_size=1, max_size=3)
STEPS = st.dictionaries(st.sampled_from("abcdef"), TEXTS, min_size=1)


def test_pairs_stay_within_lines_and_leave_templates_out():
    said = "<think>\nan old frog\n</think>\nAn old Frog,\nthe pond<|im_end|>"
    assert word_pairs(said) == ("an old", "old frog", "the pond")
    assert word_pairs("frog") == word_pairs("") == ()


def test_a_hyphen_hides_no_pair():
    assert word_pairs("the-old-frog sleeps-") == word_pairs("the old frog sleeps")


def test_distinct_pairs_count_each_once():
    assert distinct_pairs(["the old frog", "The old pond"]) == pytest.approx(3 / 4)
    assert distinct_pairs(["frog", ""]) == 0.0


def test_a_pair_counts_by_the_prompts_that_have_it():
    shares = repeated_shares({
        "frog": ["the old frog", "moon rises"],
        "owl": ["the old owl", "the old tree"],
        "tree": ["snow falls", "the old mill"],
    })
    assert shares["frog"] == [pytest.approx((1 + 0) / 2), 0.0]
    assert shares["owl"] == [pytest.approx(0.5), pytest.approx(0.5)]  # one's own prompt counts for nothing
    assert shares["tree"] == [0.0, pytest.approx(0.5)]


def test_a_pair_of_some_prompts_counts_in_part():
    shares = repeated_shares({"a": ["old frog"], "b": ["old frog"], "c": ["new moon"], "d": [""]})
    assert shares == {"a": [pytest.approx(1 / 3)], "b": [pytest.approx(1 / 3)], "c": [0.0], "d": [0.0]}


@given(STEPS)
def test_shares_are_between_none_and_all(step):
    shares = repeated_shares(step)
    assert {prompt: len(some) for prompt, some in shares.items()} == {p: len(texts) for p, texts in step.items()}
    assert all(0 <= share <= 1 for some in shares.values() for share in some)


@given(TEXTS)
def test_one_prompt_repeats_nobody(texts):
    assert repeated_shares({"a": texts}) == {"a": [0.0] * len(texts)}


@given(WORDS, st.integers(2, 5))
def test_one_poem_for_all_is_repeated_whole(text, num_prompts):
    shares = repeated_shares({str(i): [text] for i in range(num_prompts)})
    assert {share for some in shares.values() for share in some} == {1.0 if word_pairs(text) else 0.0}


@given(STEPS)
def test_the_order_of_prompts_changes_nothing(step):
    backwards = dict(reversed(step.items()))
    assert repeated_shares(backwards) == repeated_shares(step)


@given(STEPS, WORDS)
def test_another_text_for_ones_own_prompt_changes_nothing_for_it(step, text):
    prompt = next(iter(step))
    more = step | {prompt: [*step[prompt], text]}
    assert repeated_shares(more)[prompt][:-1] == repeated_shares(step)[prompt]
