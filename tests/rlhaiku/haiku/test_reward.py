import pickle

import pytest

from rlhaiku.haiku.reward import HaikuReward
from rlhaiku.types import Prompt

POEM = "an old silent pond\na frog jumps into the pond\nsplash! silence again"


def prompt(topic):
    return Prompt(f"embedded/{topic}", topic, f"Write me a haiku about {topic}.", (1, 2))


@pytest.mark.parametrize(
    ("weight", "topic", "total", "named"), [(0.0, "frog", 1.0, 1), (0.25, "frog", 1.25, 1), (0.25, "cat", 1.0, 0)]
)
def test_the_topic_adds_its_weight_and_is_always_reported(weight, topic, total, named):
    scored = HaikuReward(topic_weight=weight)(prompt(topic), POEM)
    assert scored.total == total
    assert scored.components == {"structure": 1.0, "strict": 1.0, "topic": named}


def test_a_poem_that_is_not_5_7_5_is_not_strict():
    scored = HaikuReward()(prompt("frog"), POEM + "\nthe end")
    assert (scored.total, scored.components["strict"]) == (0.75, 0.0)


def test_thoughts_about_the_topic_are_no_mention_of_it():
    assert HaikuReward(topic_weight=1)(prompt("cat"), "<think>cat</think>" + POEM).components["topic"] == 0.0


def test_the_reward_crosses_processes():
    reward = pickle.loads(pickle.dumps(HaikuReward(topic_weight=0.5)))
    assert reward(prompt("pond"), POEM).total == 1.5
