import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhaiku.haiku.syllables import words
from rlhaiku.haiku.topic import mentions_topic, singular

steady = settings(derandomize=True, deadline=None)


@pytest.mark.parametrize(
    ("text", "topic", "expected"),
    [
        ("The cat sleeps", "cat", True),
        ("two CATS sleep", "cat", True),
        ("the cat's shadow", "cat", True),
        ("the cats’ shadows", "cat", True),
        ("a catalog of rain", "cat", False),
        ("concatenate", "cat", False),
        ("a wave", "waves", True),
        ("butterflies rise", "butterfly", True),
        ("branches in snow", "branch", True),
        ("falling leaves", "leaf", True),
        ("wild geese", "goose", True),
        ("a rose, roses", "rose", True),
        ("moss and grass", "mos", False),
        ("snow-covered path", "snow", True),
        ("snowfall", "snow", False),
        ("frost of the morning", "morning frost", True),
        ("morning\nthen frost", "morning frost", True),
        ("frost at night", "morning frost", False),
        ("blossoms of cherry", "cherry-blossom", True),
        ("a cage, one bird", "bird in a cage", True),
        ("Café lights", "cafe", True),
        ("to be or not", "to be", True),
        ("nothing", "", False),
        ("nothing", "...", False),
        ("to the sea", "the", True),
    ],
)
def test_mentions_topic(text, topic, expected):
    assert mentions_topic(text, topic) is expected


@pytest.mark.parametrize(
    ("plural", "one"),
    [("storms", "storm"), ("skies", "sky"), ("wishes", "wish"), ("foxes", "fox"), ("glasses", "glass"), ("men", "man")],
)
def test_plurals_meet_their_singular(plural, one):
    assert singular(plural) == singular(one)


@steady
@given(st.lists(st.sampled_from(["cat", "river", "snow", "old", "lotus", "iris"]), min_size=1, max_size=3), st.text())
def test_a_text_that_holds_the_topic_mentions_it(topic, noise):
    assert mentions_topic(f"{noise} {' '.join(topic)} {noise}", " ".join(topic))


@steady
@given(st.text(max_size=30), st.text(max_size=30))
def test_a_topic_of_unused_words_is_not_mentioned(text, topic):
    if {part for word in words(topic) for part in word} & {part for word in words(text) for part in word}:
        return
    assert not mentions_topic(text, topic)
