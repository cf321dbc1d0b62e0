"""What survives of a run when its machine does not."""

import json

import pytest

from launch.paths import Paths
from launch.run_volume import RunVolume
from rlhaiku.errors import BadInput


@pytest.fixture
def volume(tmp_path):
    (tmp_path / "volume").mkdir()
    return RunVolume(tmp_path / "volume", tmp_path / "local", lambda: None)


def work(kept, *steps):
    """What a run writes: checkpoints, files beside them, and a database that is in use."""
    for step in steps:
        model = kept.local / "checkpoints" / f"step-{step:06d}" / "hf"
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        (model.parent / "coordinator.json").write_text(json.dumps({"step": step}))
        (model.parent / "ledger.sqlite").write_text(f"backup {step}")
    (kept.local / "eval").mkdir(exist_ok=True)
    (kept.local / "eval" / "step.json").write_text(f"{steps}")
    (kept.local / "ledger.sqlite").write_text("live")


def steps_in(directory):
    return sorted(int(path.name[5:]) for path in (directory / "checkpoints").glob("step-*"))


def test_another_attempt_at_the_same_call_goes_on(volume):
    first = volume.open("", "call-1", resume=False)
    assert not first.has_checkpoint
    work(first, 2)
    first.keep()
    work(first, 4)  # never kept: the machine went away before
    again = volume.open("", "call-1", resume=False)
    assert again.remote == first.remote and again.has_checkpoint
    assert steps_in(again.local) == [2]
    assert (again.local / "eval" / "step.json").exists()
    assert (again.local / "checkpoints" / "step-000002" / "ledger.sqlite").read_text() == "backup 2"
    assert not (again.local / "ledger.sqlite").exists(), "a live database stays behind"


def test_an_attempt_before_the_first_checkpoint_begins_anew(volume):
    work(volume.open("mine", "call-1", resume=False), 2)
    again = volume.open("mine", "call-1", resume=False)
    assert not again.has_checkpoint and not (again.local / "eval").exists()


def test_another_call_leaves_a_run_alone_unless_it_resumes(volume):
    kept = volume.open("mine", "call-1", resume=False)
    work(kept, 2)
    kept.keep()
    with pytest.raises(BadInput, match="--run must not name a run that is there"):
        volume.open("mine", "call-2", resume=False)
    assert volume.open("", "call-2", resume=True).remote == kept.remote
    with pytest.raises(BadInput, match="complete checkpoint"):
        volume.open("other", "call-3", resume=True)


def test_the_volume_keeps_as_many_checkpoints_as_the_run(volume):
    kept = volume.open("mine", "call-1", resume=False)
    work(kept, 2, 4)
    kept.keep()
    (kept.local / "checkpoints" / "step-000002").rename(kept.local / "gone")
    work(kept, 6)
    kept.keep()
    assert steps_in(kept.remote) == [4, 6]
    assert not list(kept.remote.rglob("*.partial"))


def test_a_commit_follows_everything_that_is_written(tmp_path):
    seen = []
    (tmp_path / "volume").mkdir()
    volume = RunVolume(tmp_path / "volume", tmp_path / "local", lambda: seen.append(steps_in(tmp_path / "volume/r")))
    kept = volume.open("r", "call", resume=False)
    work(kept, 2)
    kept.keep()
    assert seen == [[], [2]]


def test_the_newest_complete_model_is_the_one_to_serve(volume):
    paths = Paths(volume.root.parent)
    assert paths.newest_model() is None
    kept = RunVolume(paths.runs, volume.local, lambda: None).open("mine", "call-1", resume=False)
    work(kept, 2, 4)
    (kept.local / "checkpoints" / "step-000004" / "coordinator.json").unlink()  # incomplete
    kept.keep()
    assert paths.newest_model() == paths.runs / "mine/checkpoints/step-000002/hf"
    assert paths.newest_model("other") is None
