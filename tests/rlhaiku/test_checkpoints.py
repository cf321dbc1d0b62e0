import pytest

from rlhaiku.checkpoints import CheckpointStore, RunState, read_state


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
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        store.save(RunState(10, 10), fail)
    assert [path.name for path in store.complete()] == ["step-000005"]
    store.save(RunState(10, 10), writer("10"))
    assert (store.complete()[-1] / "weights.txt").read_text() == "10"


def test_saving_a_step_again_replaces_it(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2)
    for text in ("first", "second"):
        store.save(RunState(5, 5), writer(text))
    assert (tmp_path / "step-000005" / "weights.txt").read_text() == "second"
