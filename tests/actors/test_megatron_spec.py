"""Our Megatron layer against `transformers`, whole and cut over ranks; and a checkpoint's way through Megatron."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from actors.trainers.megatron_trainer import _begin_adam, _count_apart
from launch.checks import resolve_model
from launch.ray_cluster import free_port

ROOT = Path(__file__).parents[2]


def run_all(*commands):
    """Several processes at once; the last line each of them prints."""
    started = [
        subprocess.Popen([sys.executable, "-W", "ignore", "-m", "tests.megatron_on_cpu", *map(str, command)], cwd=ROOT,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    said = [process.communicate(timeout=200) for process in started]
    for process, (_, complaint) in zip(started, said, strict=True):
        assert process.returncode == 0, complaint[-3000:]
    return [json.loads(output.splitlines()[-1]) for output, _ in said]


@pytest.mark.slime
@pytest.mark.parametrize(("size", "sequence_parallel"), [(1, False), (2, False), (2, True)])
def test_logits_and_gradients_of_norms_are_those_of_transformers(size, sequence_parallel):
    model, port = resolve_model("bundled"), free_port()
    for found in run_all(*(("compare", model, rank, size, port, sequence_parallel) for rank in range(size))):
        assert all(gap < 1e-4 for gap in found.values()), found


@pytest.mark.slime
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_rotary_embedding_is_megatrons_to_the_bit(dtype):
    from megatron.core.models.common.embeddings.rope_utils import _apply_rotary_pos_emb_thd

    from actors.trainers.megatron_spec import rotate_packed

    one_rank = SimpleNamespace(size=lambda: 1, rank=lambda: 0)
    starts = torch.tensor([0, 7, 19, 24], dtype=torch.int32)
    for width, mscale in ((64, 1.0), (64, 1.0), (48, 1.0), (64, 0.7)):  # the pack remembers what was made for it
        angles = torch.randn(12, 1, 1, width)
        theirs = torch.randn(24, 4, 64, dtype=dtype, requires_grad=True)
        ours, weight = theirs.detach().clone().requires_grad_(), torch.randn(24, 4, 64, dtype=dtype)
        expected = _apply_rotary_pos_emb_thd(theirs, starts, angles, mscale=mscale, cp_group=one_rank)
        found = rotate_packed(ours, starts, angles, cp_group=one_rank, rotary_interleaved=False, mscale=mscale)
        for output in (expected, found):
            (output * weight).sum().backward()
        assert torch.equal(found, expected) and torch.equal(ours.grad, theirs.grad)
        assert torch.equal(rotate_packed(ours, starts, angles, mscale=mscale), expected)
    with pytest.raises(ValueError, match="no multi_latent_attention"):
        rotate_packed(ours, starts, angles, multi_latent_attention=True)


def needs_checkpoints_of_torchs_adam():
    pytest.importorskip("megatron.core")
    from megatron.core import __version__ as version

    if tuple(int(part) for part in version.split(".")[:2]) < (0, 19):
        pytest.skip(f"megatron-core {version} cannot save torch's Adam: distrib_optimizer.py, line 1670")


@pytest.mark.slime
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("size", "tensor_parallel"), [(1, 1), (2, 1), (2, 2)])
def test_a_resumed_optimizer_goes_on_as_if_nothing_had_happened(tmp_path, size, tensor_parallel):
    needs_checkpoints_of_torchs_adam()
    (tmp_path / "checkpoint").mkdir()
    port = free_port()
    ranks = [("resume", tmp_path / "checkpoint", rank, size, port, tensor_parallel) for rank in range(size)]
    assert run_all(*ranks) == [{"equal": True, "steps": [3.0]}] * size


def test_adam_has_a_counter_for_each_weight_again():
    weights = [torch.nn.Parameter(torch.ones(3)) for _ in range(2)]
    adam = torch.optim.AdamW(weights, lr=0.1)
    whole = SimpleNamespace(chained_optimizers=[SimpleNamespace(optimizer=adam)])
    _begin_adam(whole)
    assert [float(adam.state[each]["step"]) for each in weights] == [0, 0]
    shared = torch.tensor(5.0)
    for each in weights:
        adam.state[each]["step"] = shared
    adam.param_groups[0]["step"] = 5.0
    _count_apart(whole)
    for each in weights:
        each.grad = torch.ones(3)
    adam.step()
    assert [float(adam.state[each]["step"]) for each in weights] == [6, 6]
