"""Our Megatron layer against `transformers`, whole and cut over ranks; and a checkpoint's way through Megatron."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from actors.trainers.megatron_trainer import _begin_adam, _count_apart
from launch.checks import resolve_model

ROOT = Path(__file__).parents[2]


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


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
def test_a_resumed_optimizer_goes_on_as_if_nothing_had_happened(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    [found] = run_all(("resume", tmp_path / "checkpoint", free_port()))
    assert found == {"equal": True, "steps": [3.0]}


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
