"""The decoder of a GPU, stepped without its graph on the CPU, against the decoder of a CPU."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.engines.decoding import TileDecoder
from actors.engines.graph_decoding import GraphDecoder
from tests.tiny import make_request, save_tiny_model


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@pytest.mark.parametrize(("temperature", "max_tokens"), [(1.0, 20), (0.7, 9), (0.0, 12), (1.0, 1)])
def test_tokens_and_logprobs_are_those_of_the_cpu_decoder(model_path, temperature, max_tokens):
    asked = [make_request(claim, f"topic{claim}", temperature=temperature, max_tokens=max_tokens) for claim in range(5)]
    here = TileDecoder(load(model_path), [2], 0, True).decode(asked)
    graph = GraphDecoder(load(model_path), [2], 0)
    for attempt in range(2):  # the second time in the places that the first has filled
        for group, other in zip(here, graph.decode(asked), strict=True):
            for row, same in zip(group, other, strict=True):
                assert same.token_ids == row.token_ids, attempt
                assert same.stopped == row.stopped
                assert same.logprobs == pytest.approx(row.logprobs, abs=1e-4)


def test_tiles_of_other_shapes_do_not_disturb_each_other(model_path):
    graph = GraphDecoder(load(model_path), [2], 0)
    four = [make_request(claim, group_size=4) for claim in range(3)]
    two = [make_request(claim, group_size=2, max_tokens=7) for claim in range(6)]
    before = graph.decode(four)
    graph.decode(two)
    assert graph.decode(four) == before
