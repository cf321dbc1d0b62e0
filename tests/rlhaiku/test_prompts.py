from collections import Counter

import pytest

from rlhaiku.errors import BadInput
from rlhaiku.prompts import PromptOrder, choose_eval_prompts, eval_requests, render_prompts
from rlhaiku.types import Sampling
from tests.tiny import make_prompt

PROMPTS = [make_prompt(f"p{i}") for i in range(7)]


def test_every_pass_holds_every_prompt_once_in_a_new_order():
    order = PromptOrder(PROMPTS, seed=3)
    passes = [[order.at(p * 7 + i)[0] for i in range(7)] for p in range(3)]
    for index, keys in enumerate(passes):
        assert {key.pass_index for key in keys} == {index}
        assert Counter(key.prompt_id for key in keys) == Counter(p.prompt_id for p in PROMPTS)
    assert len({tuple(key.prompt_id for key in keys) for keys in passes}) == 3


def test_order_depends_on_seed_and_claim_alone():
    forward, backward = PromptOrder(PROMPTS, 3), PromptOrder(PROMPTS[::-1], 3)
    claims = [20, 3, 11, 3]
    assert [forward.at(claim) for claim in range(21)][20] == backward.at(20)
    assert [backward.at(claim) for claim in claims] == [forward.at(claim) for claim in claims]
    assert [PromptOrder(PROMPTS, 4).at(c)[1] for c in range(7)] != [forward.at(c)[1] for c in range(7)]


def test_no_prompts_is_bad_input():
    with pytest.raises(BadInput, match="needs prompts"):
        PromptOrder([], 0)


def test_eval_requests_repeat_exactly():
    first, second = (eval_requests(PROMPTS, 4, Sampling(0.7, 9), version) for version in (0, 5))
    assert [request.key for request in first] == [request.key for request in second]
    assert all(request.key.is_eval for request in first)
    assert {request.weight_version for request in second} == {5}


def test_eval_choice_ignores_the_order_of_the_file():
    assert choose_eval_prompts(PROMPTS, 3) == choose_eval_prompts(PROMPTS[::-1], 3)
    assert len(choose_eval_prompts(PROMPTS, 99)) == 7


class FakeTokenizer:
    def apply_chat_template(self, conversation, **options):
        assert options == {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        return "|".join(message["content"] for message in conversation) + "|assistant"

    def encode(self, text, **options):
        assert options == {"add_special_tokens": False}
        return [ord(c) for c in text]


def row(**changes):
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": "cat"}]
    return {"prompt_id": "embedded/cat", "topic": "cat", "messages": messages, "reference": None} | changes


def test_rendering_disables_thinking_and_adds_the_generation_prompt():
    [prompt] = render_prompts([row()], FakeTokenizer())
    assert (prompt.text, prompt.reference) == ("be|cat|assistant", "")
    assert prompt.token_ids == tuple(ord(c) for c in prompt.text)


def test_an_assistant_turn_would_leak_the_answer():
    messages = [*row()["messages"], {"role": "assistant", "content": "a poem"}]
    with pytest.raises(BadInput, match="assistant turn"):
        render_prompts([row(messages=messages)], FakeTokenizer())
