"""What is missing is said before anything starts."""

from importlib.util import find_spec

import pytest

from launch.checks import available_gpus, check_backends, check_output, check_settings
from rlhaiku.config import load_config
from rlhaiku.errors import BadInput


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine whose only command is an nvidia-smi that prints these lines."""
    def make(*lines):
        monkeypatch.setenv("PATH", str(tmp_path))
        if lines:
            command = tmp_path / "nvidia-smi"
            command.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
            command.chmod(0o755)

    return make


def test_gpus_are_those_the_driver_lists(machine):
    machine("GPU 0: NVIDIA H100 (UUID: GPU-1)", "GPU 1: NVIDIA H100 (UUID: GPU-2)")
    assert available_gpus() == 2


def test_a_machine_without_a_driver_has_no_gpu(machine):
    machine()
    assert available_gpus() == 0
    with pytest.raises(BadInput, match=r"needs an NVIDIA GPU.*--preset laptop"):
        check_backends(load_config("one-gpu"))


def test_a_driver_that_fails_is_no_gpu(machine):
    machine("NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver.")
    assert available_gpus() == 0


@pytest.mark.skipif(find_spec("vllm") is not None, reason="vLLM is installed")
def test_missing_vllm_is_said_with_the_command_that_installs_it(machine):
    machine("GPU 0: NVIDIA H100 (UUID: GPU-1)")
    with pytest.raises(BadInput, match=r"needs vLLM.*pip install"):
        check_backends(load_config("one-gpu", ["rollout.engine=vllm"]))


@pytest.mark.parametrize(("there", "starts", "resumes"), [
    ([], "", "Start it without --resume"),
    (["ledger.sqlite.lock", "ledger.sqlite"], "", "Start it without --resume"),  # killed before it wrote its settings
    (["config.toml", "ledger.sqlite"], "Add --resume", ""),
    (["config.toml", "metrics.jsonl"], "Add --resume", ""),
    (["config.toml", "checkpoints/step-000005"], "Add --resume", ""),
    (["checkpoints/step-000005"], "Bring its config.toml back, or choose a new", "Bring its config.toml back"),
    (["ledger.sqlite", "metrics.jsonl"], "Bring its config.toml back", "Bring its config.toml back"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_every_directory_can_be_started_in_or_resumed_or_says_what_is_missing(tmp_path, there, starts, resumes):
    for name in there:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for resume, refused in ((False, starts), (True, resumes)):
        if refused:
            with pytest.raises(BadInput, match=refused):
                check_output(tmp_path, resume)
        else:
            check_output(tmp_path, resume)
@pytest.mark.parametrize("overrides", [["cluster.colocate=true"], ["cluster.colocate=false"]])
def test_several_gpus_go_with_either_engine(machine, overrides):
    machine("GPU 0: NVIDIA H100 (UUID: GPU-1)", "GPU 1: NVIDIA H100 (UUID: GPU-2)")
    for engine in ("torch", "vllm"):
        check_settings(load_config("one-gpu", ["cluster.gpus_per_node=2", f"rollout.engine={engine}", *overrides]))
    check_backends(load_config("one-gpu", ["cluster.gpus_per_node=2", "rollout.engine=torch", *overrides]))


@pytest.mark.parametrize(("preset", "overrides", "remedy"), [
    ("one-gpu", ["cluster.gpus_per_node=2", "cluster.colocate=false", "rollout.num_engines=2"], "colocate=true"),
    ("one-gpu", ["cluster.gpus_per_node=2", "cluster.num_nodes=2"], "Set cluster.num_nodes=1"),
    ("laptop", ["rollout.engine=vllm"], "Set cluster.gpus_per_node=1"),
    ("reference", [], "--preset one-gpu"),
])
def test_backends_that_do_not_fit_are_refused_with_a_remedy(preset, overrides, remedy):
    with pytest.raises(BadInput, match=remedy):
        check_backends(load_config(preset, overrides))
