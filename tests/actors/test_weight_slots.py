import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from actors.weight_slots import WeightSlots, hashes
from actors.weight_slots import checksum as slots_checksum


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 10, bias=False)
        self.head.weight = self.embed.weight


def test_another_mapping_sees_what_was_written(tmp_path):
    torch.manual_seed(0)
    writer_model, reader_model = Tied(), Tied()
    writer, reader = WeightSlots(tmp_path / "w", writer_model, 2), WeightSlots(tmp_path / "w", reader_model, 2)
    checksum = writer.write(5, writer_model.named_parameters())
    assert reader.checksum(5) == checksum == slots_checksum(p for _, p in writer_model.named_parameters())
    for name, parameter in writer_model.named_parameters():
        assert torch.equal(reader.views(5)[name], parameter)
    assert writer.num_bytes == 4 * sum(p.numel() for p in writer_model.parameters())


def test_slots_alternate_and_keep_the_other_version(tmp_path):
    model = Tied()
    slots = WeightSlots(tmp_path / "w", model, 2)
    first = slots.write(0, model.named_parameters())
    with torch.no_grad():
        model.embed.weight += 1
    second = slots.write(1, model.named_parameters())
    assert slots.checksum(0) == first != second
    with torch.no_grad():
        model.embed.weight += 1
    slots.write(2, model.named_parameters())
    assert slots.checksum(1) == second
    assert slots.checksum(0) != first


def test_checksum_notices_every_tensor(tmp_path):
    model = Tied()
    slots = WeightSlots(tmp_path / "w", model, 1)
    checksum = slots.write(0, model.named_parameters())
    for view in slots.views(0).values():
        kept = view.flatten()[0].item()
        view.flatten()[0] = kept + 1
        assert slots.checksum(0) != checksum
        view.flatten()[0] = kept
    assert slots.checksum(0) == checksum


@settings(max_examples=60, deadline=None)
@given(shape=st.sampled_from([(3,), (8, 4), (700, 3), (1, 4096)]), place=st.integers(0, 10**6), data=st.data())
def test_hashes_notice_any_element_of_any_tensor(shape, place, data):
    tensors = {name: torch.arange(math.prod(shape)).reshape(shape).bfloat16() for name in ("a", "b")}
    before = hashes(tensors)
    assert before["a"] == before["b"] and before == hashes({name: tensor.clone() for name, tensor in tensors.items()})
    changed = tensors["b"].flatten().view(torch.int16)
    place %= len(changed)
    changed[place] ^= 1 << data.draw(st.integers(0, 15))  # a single bit
    after = hashes(tensors)
    assert after["a"] == before["a"] and after["b"] != before["b"]


def test_hashes_notice_what_is_in_another_place():
    rows = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    joined = [hashes({"qkv": torch.cat(parts)}) for parts in ((rows[:32], rows[32:]), (rows[32:], rows[:32]))]
    assert joined[0]["qkv"] != joined[1]["qkv"]


def test_a_model_in_the_only_slot_is_what_others_read(tmp_path):
    model, reader_model = Tied(), Tied()
    slots, reader = WeightSlots(tmp_path / "w", model, 1), WeightSlots(tmp_path / "w", reader_model, 1)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    slots.adopt(model)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    assert model.head.weight is model.embed.weight
    with torch.no_grad():
        torch._foreach_add_(list(model.parameters()), 1.0)
    assert all(torch.equal(view, before[name] + 1) for name, view in reader.views(7).items())
    assert reader.checksum(7) == slots.write(7, model.named_parameters())
    model.head(model.norm(model.embed(torch.tensor([1])))).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with pytest.raises(AssertionError):
        WeightSlots(tmp_path / "two", model, 2).adopt(model)
