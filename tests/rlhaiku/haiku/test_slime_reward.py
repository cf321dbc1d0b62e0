import asyncio
import subprocess
import sys
from types import SimpleNamespace

import pytest

from rlhaiku.errors import BadInput, RunFailed
from rlhaiku.haiku.slime_reward import close_judge, haiku_rm
from rlhaiku.judge import HaikuRubric
from tests.judge_server import JudgeServer, points_of

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
    assert score(sample(None)) == 0.0


@pytest.mark.parametrize("prompt", [CHAT, CHAT[0]["content"]])
def test_rendered_and_unrendered_prompts_are_understood(prompt):
    assert score(sample(prompt=prompt)) == 1.0


@pytest.mark.parametrize("known", [{"label": POEM}, {"metadata": {"reference": POEM}}])
def test_the_reference_comes_from_the_label_or_the_metadata(known):
    assert score(sample(**known)) == 0.0


def test_settings_come_from_the_arguments():
    assert score(sample(POEM + "<|im_end|>"), haiku_mode="seed") == 0.75
    assert score(sample(metadata={"topic": "cat"}), haiku_topic_weight=0.1) == 0.9
    assert score(sample(), haiku_gate="soft", haiku_dictionary="bundled", haiku_mode=None) == 1.0


@pytest.mark.parametrize("setting", ["haiku_mode", "haiku_gate", "haiku_dictionary"])
def test_a_setting_that_there_is_not_is_bad_input(setting):
    with pytest.raises(BadInput, match="defualt"):
        score(sample(), **{setting: "defualt"})


def judged(monkeypatch, test, **settings):
    """Runs `test(server)` in one event loop, with LLM_JUDGE_URL naming a real server."""

    async def body():
        async with JudgeServer(**settings) as server:
            monkeypatch.setenv("LLM_JUDGE_URL", server.url)
            try:
                return await test(server)
            finally:
                await close_judge()

    return asyncio.run(asyncio.wait_for(body(), 60))


def test_the_judge_is_asked_about_poems_whose_gate_is_open(monkeypatch):
    async def ask(server):
        near_miss = POEM.replace("silence", "calm")
        group = [sample(metadata={"topic": "frog"}), sample(near_miss, metadata={"topic": "frog"})]
        totals = await haiku_rm(SimpleNamespace(), group)
        alone = [await haiku_rm(SimpleNamespace(), one) for one in group]
        return totals, alone, len(server.connections), near_miss in str(server.bodies)

    totals, alone, connections, asked_in_vain = judged(monkeypatch, ask)
    points = points_of(POEM, ("relevance", "quality", "vocabulary"))
    if min(points["relevance"], points["quality"]) < HaikuRubric.GOOD:
        points["vocabulary"] = 0
    assert totals == alone == [pytest.approx(1 + sum(points.values()) / 15), 0.875]
    assert (connections, asked_in_vain) == (1, False)


def test_a_poem_the_judge_gives_up_is_no_reward(monkeypatch):
    async def ask(server):
        return await haiku_rm(SimpleNamespace(), sample())

    with pytest.raises(RunFailed, match="gave a poem up"):
        judged(monkeypatch, ask, always="prose")


@pytest.mark.slime
@pytest.mark.filterwarnings("ignore")
def test_slime_calls_it_by_its_path(monkeypatch):
    from slime.utils.misc import load_function
    from slime.utils.types import Sample

    reward = load_function("rlhaiku.haiku.slime_reward.haiku_rm")
    samples = [Sample(prompt="Write me a haiku.", response=text) for text in (POEM + "<|im_end|>", "pond")]
    assert asyncio.run(reward(SimpleNamespace(), samples[0])) == 1.0
    assert asyncio.run(reward(SimpleNamespace(), samples)) == [1.0, 0.0]

    async def ask(server):
        return await reward(SimpleNamespace(), samples[0], evaluation=True)

    assert judged(monkeypatch, ask) > 1.0


def test_nothing_of_slime_is_imported():
    code = "import sys, rlhaiku.haiku.slime_reward; print({'slime', 'torch', 'ray'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "set()\n"
