import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhaiku.config import load_config
from rlhaiku.errors import BadInput
from rlhaiku.haiku.reward import HaikuReward
from rlhaiku.types import Prompt

POEM = "an old silent pond\na frog jumps into the pond\nsplash! silence again"
CATS = "cat cat cat cat cat\ncat cat cat cat cat cat cat\ncat cat cat cat cat"
COMPONENTS = [
    "structure", "legitimacy", "legitimacy/script", "legitimacy/real_words", "legitimacy/spelling",
    "legitimacy/repetition", "legitimacy/content", "legitimacy/variety", "legitimacy/copying", "legitimacy/length",
    "extra_lines", "oov_share", "strict", "topic",
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
    ("weight", "topic", "total", "named"), [(0.0, "cat", 1.0, 0), (0.1, "frog", 1.0, 1), (0.1, "cat", 0.9, 0)]
)
def test_a_poem_without_its_topic_loses_the_weight_and_the_topic_is_always_reported(weight, topic, total, named):
    scored = HaikuReward(topic_weight=weight)(prompt(topic), POEM)
    assert scored.total == total
    assert list(scored.components) == COMPONENTS
    assert (scored.components["strict"], scored.components["topic"]) == (1.0, named)


def test_a_poem_that_is_not_5_7_5_is_not_strict():
    scored = HaikuReward()(prompt("frog"), POEM + "\nthe end")
    assert (scored.total, scored.components["strict"], scored.components["extra_lines"]) == (0.5625, 0.0, 1.0)


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
        ("soft", POEM + "\nthe end", 0.5625**2),
        ("soft", CATS, 0.0),
        ("off", CATS, 1.0),
    ],
)
def test_the_gate_looks_at_structure_times_legitimacy(gate, text, expected):
    assert HaikuReward(gate=gate).score_text(prompt("frog"), text).gate_value == expected


def test_seed_mode_is_the_tutorials_score_whatever_the_text():
    scored = HaikuReward(mode="seed")(prompt("cat"), CATS)
    assert scored.components == {"structure": 1.0, "legitimacy": 1.0, "strict": 1.0}
    assert HaikuReward(topic_weight=0.1, mode="seed")(prompt("cat"), CATS).total == 1.0
    assert HaikuReward(topic_weight=0.1, mode="seed")(prompt("dog"), CATS).total == 0.9


def test_seed_mode_scores_alike_with_and_without_the_terms_apart():
    reward = HaikuReward(mode="seed")
    for text in (POEM, CATS, POEM + "<|im_end|>", ""):
        assert reward(prompt("cat"), text) == reward.total(reward.score_text(prompt("cat"), text))


@pytest.mark.parametrize("text", ["<think>cat</think>" + POEM, "cat\n" + POEM, POEM + "\n\nI hope the cat likes it"])
def test_only_the_poems_own_lines_name_the_topic(text):
    assert HaikuReward()(prompt("cat"), text).components["topic"] == 0.0


@pytest.mark.parametrize(
    "setting",
    [{"mode": "sed"}, {"gate": "open"}, {"dictionary": "cmu"}, {"topic_weight": 0.125}, {"topic_weight": -0.1}],
    ids=lambda setting: next(iter(setting)),
)
def test_a_setting_that_there_is_not_is_bad_input(setting):
    with pytest.raises(BadInput, match=next(iter(setting))):
        HaikuReward(**setting)


def test_the_reward_crosses_processes():
    reward = pickle.loads(pickle.dumps(HaikuReward(topic_weight=0.1)))
    assert reward(prompt("cat"), POEM).total == 0.9


@given(texts, st.sampled_from(["default", "seed"]), st.sampled_from(["perfect", "soft", "off"]))
def test_any_text_earns_between_0_and_1(text, mode, gate):
    score = HaikuReward(mode=mode, gate=gate).score_text(prompt("cat"), text)
    bounded = [score.earned, score.gate_value, *score.components().values()]
    assert all(0.0 <= value <= 1.0 for value in bounded if value != score.parts.get("extra_lines"))


@given(texts, st.sampled_from(["default", "seed"]), st.floats(0, 1), st.floats(0, 0.124))
def test_the_total_with_a_style_is_between_0_and_2(text, mode, style, weight):
    reward = HaikuReward(weight, mode, gate="off")
    assert 0.0 <= reward.total(reward.score_text(prompt("cat"), text), style).total <= 2.0


# Malformed texts made without the scorer: counts of these words are plain, and so is what is wrong with each text.
SPOKEN = {
    1: ["moon", "frost", "stone", "bright", "wind", "leaves", "fox", "lamp", "the", "a", "on", "through"],
    2: ["river", "garden", "winter", "silver", "kitchen", "table", "sparrow", "sleeping"],
    3: ["umbrella", "september", "tomorrow", "gathering"],
}
WELL_FORMED = "winter on the roof\nthe sparrow and the old lamp\nwait for tomorrow"


@st.composite
def lines_of(draw, *syllables):
    """A text with lines of so many syllables each, `moon` in the first."""
    text = []
    for count in syllables:
        line, left = [], count
        while left:
            size = draw(st.integers(1, min(3, left)))
            line.append(draw(st.sampled_from(SPOKEN[size])))
            left -= size
        text.append(" ".join(line))
    return "\n".join(["moon " + text[0].partition(" ")[2] if text[0].split()[0] in SPOKEN[1] else text[0], *text[1:]])


off_by_some = st.tuples(st.integers(1, 9), st.integers(1, 11), st.integers(1, 9)).filter(lambda c: c != (5, 7, 5))
too_few_or_many = st.lists(st.integers(1, 8), min_size=1, max_size=6).filter(lambda counts: len(counts) != 3)
around = st.sampled_from(["{}\nmoon", "Moon\n{}", "Here is a moon haiku:\n{}", "moon\n\n{}\n\nmoon", "{}\n猫 moon"])
malformed = st.one_of(
    off_by_some.flatmap(lambda counts: lines_of(*counts)),
    too_few_or_many.flatmap(lambda counts: lines_of(*counts)),
    st.tuples(around, lines_of(5, 7, 5)).map(lambda pair: pair[0].format(pair[1])),
    st.sampled_from(SPOKEN[1]).map(lambda word: "\n".join(" ".join([word] * n) for n in (5, 7, 5))),
    st.permutations("bcdfghjklmnpqrstv").map(
        lambda names: "\n".join([" ".join(names[:5]), " ".join(names[5:12]), " ".join(names[12:])])
    ),
    lines_of(5, 7, 5).map(lambda text: text.replace("\n", " ")),
)


@given(malformed)
def test_no_malformed_text_beats_a_well_formed_poem(text):
    """Under the laptop's reward, even where the malformed text names the topic and the poem does not."""
    reward = HaikuReward(load_config("laptop").reward.topic_weight)
    assert reward(prompt("moon"), WELL_FORMED).components["topic"] == 0.0
    assert reward(prompt("moon"), text).total < reward(prompt("moon"), WELL_FORMED).total


@given(
    st.one_of(texts, st.just(POEM)),
    st.sampled_from(["<|im_end|>", "<|endoftext|>", "</s>", "<end_of_turn>", "</think>", "[BOS]", "<<SYS>>", "<br>"]),
)
def test_appending_a_template_token_changes_nothing(text, token):
    reward = HaikuReward(topic_weight=0.1)
    assert reward(prompt("pond"), text + token) == reward(prompt("pond"), text)
