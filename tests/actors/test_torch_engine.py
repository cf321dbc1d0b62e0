import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.engines.decoding import TileDecoder, sample, uniform_draws
from actors.engines.torch_engine import EngineSpec, TorchEngine
from actors.weight_slots import WeightSlots
from rlhaiku.errors import WeightMismatch
from rlhaiku.types import GroupKey
from tests.tiny import make_request, save_tiny_model

TILE = 4


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()


@pytest.fixture
def engine(model_path, tmp_path):
    torch.set_num_threads(1)
    spec = EngineSpec(str(model_path), tmp_path / "weights", 2, 1, TILE, seed=0, deterministic=True)
    WeightSlots(spec.weights_file, load(model_path), 2).write(0, load(model_path).named_parameters())
    engine = TorchEngine(spec)
    engine.receive_weights(0)
    return engine


def requests(claims=range(TILE), **kw):
    return [make_request(claim, f"topic{claim}", **kw) for claim in claims]


def test_completions_are_ragged_and_consistent(engine):
    groups = engine.generate(requests())
    completions = [c for group in groups for c in group.completions]
    assert len({len(c.token_ids) for c in completions}) > 1
    assert {c.finish_reason for c in completions} == {"stop", "length"}
    for completion in completions:
        stopped = completion.token_ids[-1] == 2
        assert (completion.finish_reason == "stop") == stopped
        assert 2 not in completion.token_ids[:-1]
        assert len(completion.logprobs) == len(completion.token_ids)
        assert "<|im_end|>" not in completion.text


def test_logprobs_are_those_of_a_plain_forward(engine, model_path):
    model = load(model_path)
    for group in engine.generate(requests(temperature=0.7)):
        for completion in group.completions:
            token_ids = torch.tensor([[*group.prompt.token_ids, *completion.token_ids]])
            logprobs = (model(input_ids=token_ids).logits[0, :-1] / 0.7).log_softmax(-1)
            expected = logprobs.gather(-1, token_ids[0, 1:, None])[len(group.prompt.token_ids) - 1 :, 0]
            torch.testing.assert_close(torch.tensor(completion.logprobs), expected, rtol=1e-4, atol=1e-4)


def test_greedy_is_the_argmax_of_a_plain_forward(engine, model_path):
    model = load(model_path)
    [group] = engine.generate(requests([0], temperature=0.0, group_size=2))
    assert group.completions[0] == group.completions[1]
    token_ids = torch.tensor([[*group.prompt.token_ids, *group.completions[0].token_ids]])
    predicted = model(input_ids=token_ids).logits[0, len(group.prompt.token_ids) - 1 : -1].argmax(-1)
    assert predicted.tolist() == group.completions[0].token_ids.tolist()


def test_a_short_tile_is_padded_so_its_bits_do_not_change(engine):
    claims = [3, 1, 2, 0]  # the longest prompt first, so that leaving one out does not narrow the tile
    whole = engine.generate(requests(claims))
    assert engine.generate(requests(claims[:3])) == whole[:3]
    assert engine.generate(requests(claims)) == whole


def test_draws_belong_to_the_completion_not_the_batch():
    key = GroupKey(3, 1, "p")
    four, eight = uniform_draws(0, key, 4, 10), uniform_draws(0, key, 8, 20)
    assert torch.equal(four, eight[:4, :10])
    others = [uniform_draws(*args, 4, 10) for args in ((1, key), (0, GroupKey(3, 2, "p")), (0, GroupKey(3, 1, "q")))]
    assert all(not torch.equal(four, other) for other in others)
    assert torch.equal(four, uniform_draws(0, GroupKey(99, 1, "p"), 4, 10))
    assert ((eight >= 0) & (eight < 1)).all()


def test_sampling_follows_the_distribution():
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0]]).expand(20_000, 4)
    draws = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    tokens, logprobs = sample(logits, 1.0, draws)
    shares = torch.bincount(tokens, minlength=4) / 20_000
    torch.testing.assert_close(shares, logits[0].softmax(-1), atol=1e-3, rtol=0)
    torch.testing.assert_close(logprobs, logits[0].log_softmax(-1)[tokens])


def test_sampling_at_the_edges_of_the_unit_interval():
    logits = torch.tensor([[0.0, 1.0, -1.0], [0.0, 1.0, -1.0]])
    tokens, _ = sample(logits, 1.0, torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64))
    assert tokens.tolist() == [0, 2]


def test_leaving_rows_change_speed_not_meaning(model_path):
    keep, leave = (TileDecoder(load(model_path), [2], 0, deterministic) for deterministic in (True, False))
    asked = requests(max_tokens=24)
    same = total = 0
    for kept, left in zip(keep.decode(asked), leave.decode(asked), strict=True):
        for one, other in zip(kept, left, strict=True):
            total += 1
            same += one.token_ids == other.token_ids
            assert one.stopped == (one.token_ids[-1] == 2)
    assert same >= 0.9 * total  # rounding may flip a draw that falls on a boundary


def test_unpublished_version_is_refused(engine):
    with pytest.raises(WeightMismatch, match="version 1"):
        engine.generate(requests(version=1))


def test_two_versions_live_side_by_side(engine, model_path, tmp_path):
    before = engine.generate(requests())
    other = load(save_tiny_model(tmp_path / "other", seed=1))
    slots = WeightSlots(tmp_path / "weights", other, 2)
    assert slots.write(1, other.named_parameters()) == engine.receive_weights(1)
    assert engine.generate(requests()) == before
    after = engine.generate(requests(version=1))
    assert [c.token_ids for c in after[0].completions] != [c.token_ids for c in before[0].completions]
    engine.receive_weights(2)
    with pytest.raises(WeightMismatch, match="version 0"):
        engine.generate(requests())
