import errno
from pathlib import Path

import pytest

from rlhaiku.checkpoints import CheckpointStore, RunState, read_state
from rlhaiku.errors import OutputFailed
from rlhaiku.ledger import Ledger


def writer(text):
    return lambda directory: (directory / "weights.txt").write_text(text)


def test_keeps_the_newest(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2)
    for step in (5, 10, 15):
        store.save(RunState(step, step), writer(str(step)))
    assert [path.name for path in store.complete()] == ["step-000010", "step-000015"]
    assert read_state(store.complete()[-1]) == RunState(15, 15)


def test_a_failed_save_leaves_the_old_one_newest(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2)
    store.save(RunState(5, 5), writer("5"))

    def fail(directory):
        (directory / "weights.txt").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OutputFailed, match="No space left on device"):
        store.save(RunState(10, 10), fail)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000005"], "what was half written is gone"
    store.save(RunState(10, 10), writer("10"))
    assert (store.complete()[-1] / "weights.txt").read_text() == "10"


def test_saving_a_step_again_replaces_it(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2)
    for text in ("first", "second"):
        store.save(RunState(5, 5), writer(text))
    assert (tmp_path / "step-000005" / "weights.txt").read_text() == "second"


def spoil(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [
    lambda step: (step / "weights.txt").unlink(),
    lambda step: (step / "weights.txt").write_text(""),
    lambda step: spoil(step / "weights.txt"),
    lambda step: (step / "coordinator.json").write_text("{"),
    lambda step: (step / "coordinator.json").write_text("[]"),
], ids=["missing", "empty", "one bit", "state cut off", "state of another kind"])
def test_a_damaged_checkpoint_is_passed_over_and_set_aside(tmp_path, damage):
    store = CheckpointStore(tmp_path, keep_last=2)
    for step in (5, 10):
        store.save(RunState(step, step), writer(f"weights of step {step}"))
    assert store.newest_intact() == (tmp_path / "step-000010", [])
    damage(tmp_path / "step-000010")
    path, problems = store.newest_intact()
    assert path == tmp_path / "step-000005"
    assert len(problems) == 1 and "step-000010" in problems[0]
    assert {p.name for p in tmp_path.iterdir()} == {"step-000005", "unusable-step-000010"}
    store.save(RunState(10, 10), writer("again"))
    assert store.newest_intact() == (tmp_path / "step-000010", [])


def test_without_any_checkpoint_there_is_none(tmp_path):
    assert CheckpointStore(tmp_path, keep_last=2).newest_intact() == (None, [])


def test_each_checkpoint_holds_the_ledger_of_its_moment(tmp_path):
    with Ledger(tmp_path / "ledger.sqlite") as ledger:
        ledger.begin_attempt(0)
        store = CheckpointStore(tmp_path / "checkpoints", keep_last=2, ledger=ledger)
        saved = store.save(RunState(5, 5), writer("5"))
    with Ledger(saved / "ledger.sqlite") as copy:
        assert copy.begin_attempt(0) == 2
    assert store.newest_intact()[1], "writing into a checkpoint is noticed"


def test_a_directory_that_takes_nothing_is_an_error_that_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputFailed, match=r"file[\s\S]*Not a directory[\s\S]*--resume"):
        CheckpointStore(tmp_path / "file", keep_last=2).save(RunState(5, 5), writer("5"))


def test_the_same_step_may_be_damaged_again_and_again(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2)
    store.save(RunState(5, 5), writer("5"))
    for _ in range(3):
        store.save(RunState(10, 10), writer("10"))
        (tmp_path / "step-000010" / "weights.txt").write_text("bad")
        assert store.newest_intact()[0] == tmp_path / "step-000005"
    names = {"step-000005", "unusable-step-000010", "unusable-step-000010.2", "unusable-step-000010.3"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_file_that_cannot_be_read_is_damage(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path, keep_last=2)
    for step in (5, 10):
        store.save(RunState(step, step), writer(str(step)))
    opened = Path.open

    def bad_sector(path, *arguments, **keywords):
        if path.match("step-000010/weights.txt"):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return opened(path, *arguments, **keywords)

    monkeypatch.setattr(Path, "open", bad_sector)
    path, problems = store.newest_intact()
    assert path == tmp_path / "step-000005"
    assert "Input/output error" in problems[0]


def test_what_cannot_be_set_aside_ends_the_resume_with_a_remedy(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path, keep_last=2)
    store.save(RunState(5, 5), writer("5"))
    (tmp_path / "step-000005" / "weights.txt").write_text("bad")

    def read_only(self, target):
        raise OSError(errno.EROFS, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "rename", read_only)
    with pytest.raises(OutputFailed, match=r"step-000005: Read-only file system[\s\S]*--resume"):
        store.newest_intact()
