"""Groups over real HTTP from a server that speaks SGLang's protocol, well and badly."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.engines.sglang_client import (
    NO_VERSION,
    ServerGone,
    SglangClient,
    end_tokens,
    read_group,
    read_version,
    request_body,
)
from rlhaiku.errors import ActorFailed, WeightMismatch
from tests.sglang_stand_in import END, Served, SglangStandIn
from tests.tiny import make_request


@pytest.fixture
def server():
    return SglangStandIn(version="3")


@pytest.fixture
def ask(server):
    with Served(server) as url:
        client = SglangClient(url, 2.0, [END])
        yield client.generate
        client.close()


def requests(count, **kw):
    return [make_request(claim, f"cat{claim}", version=3, **kw) for claim in range(count)]


def test_a_group_is_one_request_and_comes_back_whole(server, ask):
    asked = requests(5, group_size=4, max_tokens=6)
    groups = ask(asked)
    assert [group.key for group in groups] == [each.key for each in asked]
    assert len(server.bodies) == 5 and server.peak == 5
    assert server.bodies[0]["sampling_params"] == {
        "temperature": 1.0, "max_new_tokens": 6, "stop_token_ids": [END], "n": 4,
    }
    assert sorted(tuple(body["input_ids"]) for body in server.bodies) == sorted(r.prompt.token_ids for r in asked)
    for completion in (c for group in groups for c in group.completions):
        assert len(completion.token_ids) == len(completion.logprobs) <= 6
        assert (completion.finish_reason == "stop") == (completion.token_ids[-1] == END)
        assert completion.weight_version == 3 and all(logprob <= 0 for logprob in completion.logprobs)
    assert len({tuple(completion.token_ids) for completion in groups[0].completions}) > 1


def test_seeded_completions_are_a_batch_with_a_seed_each():
    def seeds(seed):
        body = request_body(make_request(1, group_size=3), [END], seed)
        assert len(body["input_ids"]) == 3
        return [params["sampling_seed"] for params in body["sampling_params"]]

    assert len(set(seeds(7))) == 3 and all(0 <= each < 2**48 for each in seeds(7))
    assert seeds(7) == seeds(7) != seeds(8)


def test_seeded_completions_are_read_like_others(server):
    with Served(server) as url:
        client = SglangClient(url, 2.0, [END], seed=7)
        [group] = client.generate(requests(1, group_size=3))
        client.close()
    assert len(group.completions) == 3 and isinstance(server.bodies[0]["sampling_params"], list)


def test_a_greedy_group_is_drawn_once(server, ask):
    [group] = ask(requests(1, group_size=4, temperature=0.0))
    assert server.bodies[0]["sampling_params"]["n"] == 1
    assert group.completions == group.completions[:1] * 4


@pytest.mark.parametrize(("how", "error", "said"), [
    ("500", ServerGone, "500"), ("hang", ServerGone, "within 2 s"), ("drop", ServerGone, "does not answer"),
    ("400", ActorFailed, "out of sorts"), ("prose", ActorFailed, "JSON"), ("abort", ActorFailed, "aborted"),
    ("short", ActorFailed, "4 completions; it drew 3"),
])
def test_what_goes_wrong_is_said(server, ask, how, error, said):
    server.script = [how]
    with pytest.raises(error, match=said):
        ask(requests(1))
    assert len(ask(requests(1))) == 1


def test_a_server_that_hangs_is_given_up_by_the_deadline(server, ask):
    server.script = ["", "hang"]
    started = time.monotonic()
    with pytest.raises(ServerGone):
        ask(requests(2))
    assert 1.5 < time.monotonic() - started < 4


def test_a_server_that_is_not_there_is_gone():
    client = SglangClient("http://127.0.0.1:9", 2.0, [END])
    with pytest.raises(ServerGone, match="does not answer"):
        client.generate(requests(1))
    client.close()


def test_other_weights_are_refused(server, ask):
    server.version = "4"
    with pytest.raises(WeightMismatch, match=r"version 3; it holds '4'"):
        ask(requests(1))


def test_a_server_says_which_weights_it_holds(server):
    with Served(server) as url:
        client = SglangClient(url, 2.0, [END])
        assert client.weight_version() == 3
        server.version = "default"
        assert client.weight_version() == NO_VERSION
        client.close()


def test_end_tokens_are_those_of_the_generation_settings(tmp_path):
    assert end_tokens(str(tmp_path)) == []
    (tmp_path / "config.json").write_text('{"eos_token_id": 7}')
    assert end_tokens(str(tmp_path)) == [7]
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 3]}')
    assert end_tokens(str(tmp_path)) == [2, 3]


@pytest.mark.parametrize(("said", "version"), [("0", 0), ("12", 12), ("default", NO_VERSION), (None, NO_VERSION)])
def test_versions(said, version):
    assert read_version(said) == version


triples = st.lists(st.tuples(st.floats(-30, 0), st.integers(0, 10**6), st.none()), min_size=1, max_size=5)
answers = st.lists(st.tuples(triples, st.sampled_from(["stop", "length"]), st.text()), min_size=2, max_size=4)
leaf = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
json_like = st.recursive(leaf, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


def answer(drawn, reason, text, version="3"):
    meta = {"finish_reason": {"type": reason}, "weight_version": version,
            "output_token_logprobs": [list(each) for each in drawn]}
    return {"text": text, "meta_info": meta}


@given(answers)
def test_every_answer_is_read_as_it_was_said(said):
    group = read_group(make_request(version=3, group_size=len(said)), [answer(*each) for each in said], [END])
    for completion, (drawn, _, text) in zip(group.completions, said, strict=True):
        assert completion.token_ids.tolist() == [token for _, token, _ in drawn]
        assert completion.logprobs.tolist() == [logprob for logprob, _, _ in drawn]
        assert (completion.text, completion.weight_version) == (text, 3)
        assert completion.finish_reason == ("stop" if drawn[-1][1] == END else "length")


@given(json_like, st.sampled_from(["whole", "meta_info", "output_token_logprobs", "finish_reason"]))
def test_anything_else_is_an_error_of_ours(junk, where):
    good = answer([(-1.0, 5, None)], "stop", "x")
    if where == "whole":
        good = junk
    elif where == "meta_info":
        good["meta_info"] = junk
    else:
        good["meta_info"][where] = junk
    with pytest.raises(ActorFailed):
        read_group(make_request(version=3, group_size=1), [good], [END])
