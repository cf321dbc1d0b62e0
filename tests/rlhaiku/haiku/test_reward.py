import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhaiku.haiku.reward import HaikuReward
from rlhaiku.types import Prompt

POEM = "an old silent pond\na frog jumps into the pond\nsplash! silence again"
CATS = "cat cat cat cat cat\ncat cat cat cat cat cat cat\ncat cat cat cat cat"
COMPONENTS = [
    "structure", "legitimacy", "legitimacy/script", "legitimacy/real_words", "legitimacy/spelling",
    "legitimacy/repetition", "legitimacy/variety", "legitimacy/copying", "legitimacy/length", "extra_lines",
    "oov_share", "strict", "topic",
]  # fmt: skip

texts = st.one_of(
    st.text(max_size=200),
    st.text(st.sampled_from("ab \n/.`<>|?!é猫-'17"), max_size=80),
    st.lists(st.sampled_from(["moon", "the", "fire", "GPUs", "1984", "zx", "cat-cat", "\n", "</think>", "/"])).map(
        " ".join
    ),
)


def prompt(topic, reference=""):
    return Prompt(f"embedded/{topic}", topic, f"Write me a haiku about {topic}.", (1, 2), reference)


@pytest.mark.parametrize(
    ("weight", "topic", "total", "named"), [(0.0, "frog", 1.0, 1), (0.25, "frog", 1.25, 1), (0.25, "cat", 1.0, 0)]
)
def test_the_topic_adds_its_weight_and_is_always_reported(weight, topic, total, named):
    scored = HaikuReward(topic_weight=weight)(prompt(topic), POEM)
    assert scored.total == total
    assert list(scored.components) == COMPONENTS
    assert (scored.components["strict"], scored.components["topic"]) == (1.0, named)


def test_a_poem_that_is_not_5_7_5_is_not_strict():
    scored = HaikuReward()(prompt("frog"), POEM + "\nthe end")
    assert (scored.total, scored.components["strict"], scored.components["extra_lines"]) == (0.75, 0.0, 1.0)


def test_5_7_5_that_is_no_language_earns_nothing():
    components = HaikuReward()(prompt("cat"), CATS).components
    assert (components["structure"], components["legitimacy"], components["strict"]) == (1.0, 0.0, 0.0)


def test_the_reference_of_the_prompt_must_not_be_copied():
    assert HaikuReward()(prompt("frog", reference=POEM), POEM).total == 0.0


def test_words_that_are_not_in_the_dictionary_are_reported():
    assert HaikuReward()(prompt("frog"), "the moonpetal falls").components["oov_share"] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("gate", "text", "expected"),
    [
        ("perfect", POEM, 1.0),
        ("perfect", POEM + "\nthe end", 0.0),
        ("perfect", CATS, 0.0),
        ("soft", POEM, 1.0),
        ("soft", POEM + "\nthe end", 0.75**2),
        ("soft", CATS, 0.0),
        ("off", CATS, 1.0),
    ],
)
def test_the_gate_looks_at_structure_times_legitimacy(gate, text, expected):
    assert HaikuReward(gate=gate).score_text(prompt("frog"), text).gate_value == expected


def test_seed_mode_is_the_tutorials_score_whatever_the_text():
    scored = HaikuReward(mode="seed")(prompt("cat"), CATS)
    assert scored.components == {"structure": 1.0, "legitimacy": 1.0, "strict": 1.0}
    assert HaikuReward(topic_weight=0.5, mode="seed")(prompt("cat"), CATS).total == 1.5


def test_thoughts_about_the_topic_are_no_mention_of_it():
    assert HaikuReward(topic_weight=1)(prompt("cat"), "<think>cat</think>" + POEM).components["topic"] == 0.0


def test_the_reward_crosses_processes():
    reward = pickle.loads(pickle.dumps(HaikuReward(topic_weight=0.5)))
    assert reward(prompt("pond"), POEM).total == 1.5


@given(texts, st.sampled_from(["default", "seed"]), st.sampled_from(["perfect", "soft", "off"]))
def test_any_text_earns_between_0_and_1(text, mode, gate):
    score = HaikuReward(mode=mode, gate=gate).score_text(prompt("cat"), text)
    bounded = [score.earned, score.gate_value, *score.components().values()]
    assert all(0.0 <= value <= 1.0 for value in bounded if value != score.parts.get("extra_lines"))


@given(texts)
def test_no_malformed_text_beats_a_well_formed_poem(text):
    reward = HaikuReward()
    earned = reward.score_text(prompt("pond"), text).earned
    well_formed = reward.score_text(prompt("pond"), POEM).earned
    components = reward(prompt("pond"), text).components
    assert earned < well_formed or components["strict"] == components["structure"] == components["legitimacy"] == 1.0


@given(st.one_of(texts, st.just(POEM)), st.sampled_from(["<|im_end|>", "<|endoftext|>", "</s>", "<end_of_turn>"]))
def test_appending_a_template_token_changes_nothing(text, token):
    reward = HaikuReward(topic_weight=0.5)
    assert reward(prompt("pond"), text + token) == reward(prompt("pond"), text)
