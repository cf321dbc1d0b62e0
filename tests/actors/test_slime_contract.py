"""The start-up check, on source trees made here: one that keeps the contract, and that one changed."""

import os
import subprocess
import venv
from pathlib import Path

import pytest

from actors import slime_contract
from actors.slime_contract import ANSWER, ATTRIBUTES, CALLS, TRAINER, check_slime, commit_of, contract_differences
from actors.slime_pin import (
    CHECK_OUT_SLIME,
    MEGATRON_COMMIT,
    MEGATRON_HOME,
    PUT_SLIME_ON_PATH,
    SLIME_COMMIT,
    SLIME_HOME,
    SLIME_IMAGE,
)
from rlhaiku.errors import BadInput

CALLBACK = f"""
        ({', '.join(ANSWER)}) = ray.get(self.rollout_manager.get_updatable_engines_and_lock.remote())
        ray.get(self.rollout_manager.clear_updatable_num_new_engines.remote())
"""
UPDATER = "backends/megatron_utils/update_weight/update_weight_from_tensor.py"
KEYWORD_ONLY = "global_batch_size, rollout_indices"


@pytest.fixture
def slime(tmp_path):
    """Stubs of every function of the contract, in the files where slime has them."""
    root = tmp_path / "slime"
    for file, calls in CALLS.items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        stubs = [_stub(name, parameters, ATTRIBUTES.get(file, {}).get(name, ())) for name, parameters in calls.items()]
        (root / file).write_text("\n".join(stubs))
    return root


def _stub(name, parameters, attributes):
    owner, _, function = name.rpartition(".")
    line = f"def {function}({', '.join(parameters)}): pass".replace(KEYWORD_ONLY, f"*, {KEYWORD_ONLY}")
    if attributes:
        line = line.replace("pass", " = ".join(f"self.{each}" for each in attributes) + " = 0")
    if function == "update_weights":
        line = line.replace(" pass", CALLBACK)
    return f"class {owner}:\n    {line}" if owner else line


def change(root, file, old, new):
    text = (root / file).read_text()
    assert old in text
    (root / file).write_text(text.replace(old, new))


def test_a_slime_that_keeps_the_contract(slime):
    assert list(contract_differences(slime)) == []


def test_more_arguments_are_fine_if_they_have_defaults(slime):
    change(slime, "utils/misc.py", "self, inner", "self, inner, tag=None, *, owner=None")
    assert list(contract_differences(slime)) == []


@pytest.mark.parametrize(("file", "old", "new", "said"), [
    (TRAINER, "num_new_engines, ", "", "trainers unpack"),
    (TRAINER, "clear_updatable_num_new_engines", "forget_engines", "trainers call forget_engines"),
    (TRAINER, "def save_model", "def keep", "has no MegatronTrainRayActor.save_model"),
    (TRAINER, "rollout_id, rollout_data_ref", "rollout_id, refs", "train takes (self, rollout_id, refs)"),
    ("utils/misc.py", "inner", "inner, kind", "Box.__init__ takes (self, inner, kind), not (self, inner)"),
    ("utils/dp_schedule.py", "rollout_indices", "rollout_indices, seed", "build_dp_schedule takes"),
    ("utils/arguments.py", "()", "(argv)", "parse_args takes (argv)"),
    (TRAINER, "self.weights_backuper = ", "", "init does not set weights_backuper"),
    (UPDATER, "self.weight_version = ", "", "UpdateWeightFromTensor.__init__ does not set weight_version"),
    ("observability/logging_utils.py", "metrics", "rows", "log takes (args, rows, step_key)"),
    ("backends/megatron_utils/checkpoint.py", "ddp_model", "model", "load_checkpoint takes (model, "),
    ("backends/megatron_utils/megatron_to_hf/__init__.py", "model_name, ", "", "convert_to_hf takes (args, name, "),
    ("ray/ray_actor.py", "consecutive", "count", "_get_current_node_ip_and_free_port takes (start_port, count)"),
    (UPDATER, "engine_gpu_offsets, ", "", "UpdateWeightFromTensor.connect_rollout_engines takes"),
])
def test_each_difference_is_named(slime, file, old, new, said):
    change(slime, file, old, new)
    [difference] = list(contract_differences(slime))
    assert said in difference


def test_a_file_that_went_elsewhere(slime):
    (slime / "ray" / "utils.py").unlink()
    assert list(contract_differences(slime)) == ["ray/utils.py is not there"]


def test_the_check_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(slime_contract, "find_spec", lambda name: None if name == "sglang" else object())
    with pytest.raises(BadInput, match=r"no sglang.*slimerl/slime"):
        check_slime()


def test_megatron_without_its_training_is_missing(monkeypatch, tmp_path):
    (tmp_path / "megatron" / "core").mkdir(parents=True)
    (tmp_path / "megatron" / "core" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(BadInput, match=r"no megatron\.training"):
        check_slime()


@pytest.mark.parametrize("is_package", [True, False])
def test_the_repository_beside_us_is_not_taken_for_the_package(slime, tmp_path, monkeypatch, is_package):
    """Modal has the folder on the path in which the image keeps slime's repository."""
    repository = tmp_path / "root" / "slime"
    repository.mkdir(parents=True)
    slime.rename(repository / "slime")
    if is_package:
        (repository / "slime" / "__init__.py").touch()
    monkeypatch.syspath_prepend(repository)
    monkeypatch.syspath_prepend(repository.parent)
    assert slime_contract._source_root() == repository / "slime"


def test_the_image_finds_slime_and_megatron_with_their_parent_on_the_path(tmp_path):
    """The image's own command, run for a Python of our own; the trees are where the image has them but for `root`."""
    root = tmp_path / "root"
    for home, package in ((SLIME_HOME, "slime"), (MEGATRON_HOME, "megatron/training")):
        directory = tmp_path / home.lstrip("/") / package
        directory.mkdir(parents=True)
        (directory / "__init__.py").touch()
    venv.create(tmp_path / "venv", with_pip=False)
    environment = {"PATH": f"{tmp_path}/venv/bin:{os.environ['PATH']}", "PYTHONPATH": str(root)}
    ask = "import slime, megatron.training; print(slime.__file__, megatron.training.__file__)"

    def found():
        command = ["python", "-c", ask]
        return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False).stdout

    assert "None" in found() or not found(), "what Modal's path alone comes to"
    command = PUT_SLIME_ON_PATH.replace("/root/", f"{root}/")
    subprocess.run(["sh", "-ec", command], env=environment, check=True)
    slime_file, megatron_file = map(Path, found().split())
    assert slime_file == tmp_path / SLIME_HOME.lstrip("/") / "slime" / "__init__.py"
    assert megatron_file == tmp_path / MEGATRON_HOME.lstrip("/") / "megatron" / "training" / "__init__.py"


def test_the_check_says_what_differs_and_in_which_commit(slime, monkeypatch, caplog):
    monkeypatch.setattr(slime_contract, "find_spec", lambda name: type("Spec", (), {
        "submodule_search_locations": [str(slime)],
    }))
    check_slime()
    assert "slime is at an unknown commit" in caplog.text
    (slime.parent / ".git").mkdir()
    (slime.parent / ".git" / "HEAD").write_text("abc123\n")
    check_slime()
    assert "slime is at abc123, not at the commit it was tested at" in caplog.text
    caplog.clear()
    (slime.parent / ".git" / "HEAD").write_text(f"{SLIME_COMMIT}\n")
    check_slime()
    assert not caplog.text
    (slime.parent / ".git" / "HEAD").write_text("abc123\n")
    (slime / "ray" / "utils.py").unlink()
    with pytest.raises(BadInput) as refusal:
        check_slime()
    assert "slime abc123: ray/utils.py is not there" in str(refusal.value) and SLIME_COMMIT in str(refusal.value)


def test_the_commit_of_a_branch(slime):
    git = slime.parent / ".git"
    (git / "refs").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/main\n")
    assert commit_of(slime) is None
    (git / "refs" / "main").write_text("def456\n")
    assert commit_of(slime) == "def456"


def test_the_pin_is_whole():
    assert len(SLIME_COMMIT) == len(MEGATRON_COMMIT) == 40
    assert SLIME_IMAGE.startswith("slimerl/slime:") and len(SLIME_IMAGE.partition("@sha256:")[2]) == 64
    assert CHECK_OUT_SLIME.count(SLIME_COMMIT) == 2
