"""What survives of a run when its machine does not."""


import pytest

from launch.paths import Paths
from launch.run_volume import RunVolume
from rlhaiku.checkpoints import CheckpointStore, RunState
from rlhaiku.errors import BadInput


@pytest.fixture
def volume(tmp_path):
    (tmp_path / "volume").mkdir()
    return RunVolume(tmp_path / "volume", tmp_path / "local", lambda: None)


def begin(volume, name, call, resume=False):
    """As `train` does it."""
    return volume.open(volume.earlier(name, call, resume) or volume.new(name), call)


def work(kept, *steps):
    """What a run writes: checkpoints, files beside them, and a database that is in use."""
    for step in steps:

        def write(partial, step=step):
            (partial / "hf").mkdir()
            (partial / "hf" / "config.json").write_text("{}")
            (partial / "ledger.sqlite").write_text(f"backup {step}")

        CheckpointStore(kept.local / "checkpoints", keep_last=9).save(RunState(step), write)
    (kept.local / "eval").mkdir(exist_ok=True)
    (kept.local / "eval" / "step.json").write_text(f"{steps}")
    (kept.local / "ledger.sqlite").write_text("live")


def steps_in(directory):
    return sorted(int(path.name[5:]) for path in (directory / "checkpoints").glob("step-*"))


def test_another_attempt_at_the_same_call_goes_on(volume):
    first = begin(volume, "", "call-1", resume=False)
    assert not first.has_checkpoint
    work(first, 2)
    first.keep()
    work(first, 4)  # never kept: the machine went away before
    again = begin(volume, "", "call-1", resume=False)
    assert again.remote == first.remote and again.has_checkpoint
    assert steps_in(again.local) == [2]
    assert (again.local / "eval" / "step.json").exists()
    assert (again.local / "checkpoints" / "step-000002" / "ledger.sqlite").read_text() == "backup 2"
    assert not (again.local / "ledger.sqlite").exists(), "a live database stays behind"


def test_an_attempt_before_the_first_checkpoint_begins_anew(volume):
    work(begin(volume, "mine", "call-1", resume=False), 2)
    again = begin(volume, "mine", "call-1", resume=False)
    assert not again.has_checkpoint and not (again.local / "eval").exists()


def test_only_the_newest_checkpoint_is_copied_back_and_the_volume_keeps_two(volume):
    first = begin(volume, "mine", "call-1")
    work(first, 2, 4)
    first.keep()
    again = begin(volume, "mine", "call-1")
    assert steps_in(again.local) == [4]
    again.keep()
    assert steps_in(again.remote) == [2, 4], "until there is a newer one"
    work(again, 6)
    again.keep()
    assert steps_in(again.remote) == [4, 6]


def test_a_damaged_checkpoint_is_not_what_a_run_goes_on_from(volume, capsys):
    first = begin(volume, "mine", "call-1")
    work(first, 2, 4)
    first.keep()
    (first.remote / "checkpoints" / "step-000004" / "hf" / "config.json").write_text("torn")
    again = begin(volume, "mine", "call-1")
    assert steps_in(again.local) == [2] and "was changed after it was written" in capsys.readouterr().out
    work(again, 4)
    again.keep()
    assert (again.remote / "checkpoints" / "step-000004" / "hf" / "config.json").read_text() == "{}"


def test_a_first_save_that_was_cut_off_is_no_run_to_go_on_with(volume, monkeypatch):
    """Files are copied before the checkpoint; the machine goes away in between."""
    from launch import run_volume
    from launch.checks import check_output

    copy = run_volume._copy

    def dying(source, target):
        if source.is_dir():
            raise KeyboardInterrupt
        copy(source, target)

    first = begin(volume, "mine", "call-1")
    work(first, 2)
    (first.local / "metrics.jsonl").write_text("{}\n")
    monkeypatch.setattr(run_volume, "_copy", dying)
    with pytest.raises(KeyboardInterrupt):
        first.keep()
    monkeypatch.undo()
    assert (first.remote / "metrics.jsonl").exists() and not steps_in(first.remote)
    again = begin(volume, "mine", "call-1")
    assert again.remote == first.remote and not again.has_checkpoint
    check_output(again.local, resume=again.has_checkpoint)


def test_other_ranks_find_the_same_run_and_change_nothing(volume):
    assert volume.earlier("mine", "call-1", resume=False) is None
    head = begin(volume, "mine", "call-1")
    work(head, 2)
    head.keep()
    before = sorted(head.remote.rglob("*"))
    assert volume.earlier("mine", "call-1", resume=False) == head.remote
    assert volume.earlier("", "call-2", resume=True) == head.remote
    assert sorted(head.remote.rglob("*")) == before


@pytest.mark.parametrize("name", ["../other", "a/b", ".hidden"])
def test_a_run_has_a_name_and_not_a_path(volume, name):
    with pytest.raises(BadInput, match="--run is a name"):
        volume.new(name)


def test_another_call_leaves_a_run_alone_unless_it_resumes(volume):
    kept = begin(volume, "mine", "call-1", resume=False)
    work(kept, 2)
    kept.keep()
    with pytest.raises(BadInput, match="--run must not name a run that is there"):
        begin(volume, "mine", "call-2", resume=False)
    assert begin(volume, "", "call-2", resume=True).remote == kept.remote
    with pytest.raises(BadInput, match="complete checkpoint"):
        begin(volume, "other", "call-3", resume=True)


def test_the_volume_keeps_as_many_checkpoints_as_the_run(volume):
    kept = begin(volume, "mine", "call-1", resume=False)
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
    kept = begin(volume, "r", "call", resume=False)
    work(kept, 2)
    kept.keep()
    assert seen == [[], [2]]


def test_the_newest_complete_model_is_the_one_to_serve(volume):
    paths = Paths(volume.root.parent)
    assert paths.newest_model() is None
    kept = begin(RunVolume(paths.runs, volume.local, lambda: None), "mine", "call-1")
    work(kept, 2, 4)
    (kept.local / "checkpoints" / "step-000004" / "coordinator.json").unlink()  # incomplete
    kept.keep()
    assert paths.newest_model() == paths.runs / "mine/checkpoints/step-000002/hf"
    assert paths.newest_model("other") is None
