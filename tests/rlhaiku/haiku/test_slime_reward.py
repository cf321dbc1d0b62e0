import asyncio
import subprocess
import sys
from types import SimpleNamespace

import pytest

from rlhaiku.haiku.slime_reward import haiku_rm

POEM = "an old silent pond\na frog jumps into the pond\nsplash! silence again"
CHAT = [{"role": "user", "content": "Write me a haiku about a pond."}]


def sample(response=POEM, prompt="Write me a haiku about a pond.", label=None, metadata=None):
    return SimpleNamespace(prompt=prompt, response=response, label=label, metadata=metadata)


def score(samples, **settings):
    return asyncio.run(haiku_rm(SimpleNamespace(**settings), samples, evaluation=False))


def test_one_sample_is_a_float_and_a_list_is_a_list():
    assert score(sample()) == 1.0
    assert score([sample(), sample("pond<|im_end|>"), sample(POEM + "<|im_end|>")]) == [1.0, 0.0, 1.0]
    assert score([]) == []


@pytest.mark.parametrize("prompt", [CHAT, CHAT[0]["content"]])
def test_rendered_and_unrendered_prompts_are_understood(prompt):
    assert score(sample(prompt=prompt)) == 1.0


@pytest.mark.parametrize("known", [{"label": POEM}, {"metadata": {"reference": POEM}}])
def test_the_reference_comes_from_the_label_or_the_metadata(known):
    assert score(sample(**known)) == 0.0


def test_settings_come_from_the_arguments():
    assert score(sample(POEM + "<|im_end|>"), haiku_mode="seed") == 0.75
    assert score(sample(metadata={"topic": "frog"}), haiku_topic_weight=0.5) == 1.5


def test_nothing_of_slime_is_imported():
    code = "import sys, rlhaiku.haiku.slime_reward; print({'slime', 'torch', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"
