"""The actor that slime's trainers call back, in process and on real Ray with trainers that behave like slime's."""

import sys
import threading

import pytest
import ray

from actors.registry import Registry
from actors.waiting import wait_for
from rlhaiku.errors import RunFailed

ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
RANKS = 2
BARRIER_S = 30.0


def connected(engines=("a", "b"), gpus_per_engine=1):
    registry = Registry(RANKS, gpus_per_engine)
    registry.set_engines(engines, "lock")
    update(registry)
    return registry


def update(registry, clear=True):
    """One weight update as all ranks see it: how many engines are new, and who they are."""
    answers = [registry.get_updatable_engines_and_lock() for _ in range(RANKS)]
    assert answers[0] == answers[1]
    if answers[0][2] and clear:
        registry.clear_updatable_num_new_engines()
    return answers[0][2], answers[0][0]


def test_the_answer_is_what_slime_unpacks():
    registry = Registry(RANKS, gpus_per_engine=2)
    registry.set_engines(["a", "b", "c"], "lock")
    engines, lock, num_new, counts, offsets, parallel = registry.get_updatable_engines_and_lock()
    assert (engines, lock, num_new) == (["a", "b", "c"], "lock", 3)
    assert counts == [2, 2, 2] and offsets == [0, 2, 4]
    assert parallel == [{"tp_size": 2, "pp_size": 1, "ep_size": 1, "moe_dp_size": 1}] * 3


def test_engines_are_new_once():
    registry = connected()
    assert update(registry) == (0, ["a", "b"]) == update(registry)


def test_a_replaced_engine_is_new_once():
    registry = connected()
    registry.replace_engine(1, "b2")
    assert update(registry) == (1, ["a", "b2"])
    assert update(registry) == (0, ["a", "b2"])


def test_all_ranks_of_an_update_get_one_answer():
    registry = connected()
    first = registry.get_updatable_engines_and_lock()
    registry.replace_engine(0, "a2")
    assert registry.get_updatable_engines_and_lock() == first
    assert update(registry) == (1, ["a2", "b"])


def test_what_is_replaced_while_the_ranks_connect_is_new_the_next_time():
    registry = connected()
    registry.replace_engine(0, "a2")
    assert update(registry, clear=False) == (1, ["a2", "b"])
    registry.replace_engine(0, "a3")
    registry.clear_updatable_num_new_engines()
    assert update(registry) == (1, ["a3", "b"])
    assert update(registry)[0] == 0


def test_new_trainers_are_connected_to_no_engine():
    registry = connected()
    registry.get_updatable_engines_and_lock()  # one rank asked, then all trainers died
    registry.set_engines(["a", "b"], "lock2")
    assert update(registry) == (2, ["a", "b"])
    assert registry.get_updatable_engines_and_lock()[1] == "lock2"


def test_the_parallelism_is_reported_by_rank_0():
    registry = Registry(RANKS)
    with pytest.raises(RunFailed, match="rank 0"):
        registry.train_parallel_config()
    registry.set_train_parallel_config({"dp_size": 2, "cp_size": 1})
    assert registry.train_parallel_config() == {"dp_size": 2, "cp_size": 1}
    registry.recover_updatable_engines()  # has nothing to do, and must not fail


class Barrier:
    def __init__(self):
        self.barrier = threading.Barrier(RANKS)

    def wait(self):
        self.barrier.wait(BARRIER_S)


class Engine:
    """Counts who connected, and takes weights only from a trainer that is."""

    def __init__(self):
        self.connections, self.versions = [], []

    def connect(self, by):
        self.connections.append(by)

    def update(self, by, version):
        assert by in self.connections, f"{by} sends weights without a connection"
        self.versions.append(version)

    def seen(self):
        return self.connections, self.versions


class SlimeLikeTrainer:
    """Calls back as slime's trainers do: every rank asks, connects if told so, waits for the others; rank 0 clears."""

    def __init__(self, rank, barrier):
        self.rank, self.barrier, self.version = rank, barrier, 0

    def set_rollout_manager(self, manager):
        self.manager = manager
        if self.rank == 0:
            ray.get(manager.set_train_parallel_config.remote({"dp_size": RANKS, "cp_size": 1}))

    def update_weights(self):
        engines, _lock, num_new, counts, offsets, parallel = ray.get(
            self.manager.get_updatable_engines_and_lock.remote()
        )
        assert len(engines) == len(counts) == len(offsets) == len(parallel)
        if num_new > 0:
            ray.get([engine.connect.remote(self.rank) for engine in engines])
            ray.get(self.barrier.wait.remote())
            if self.rank == 0:
                ray.get(self.manager.clear_updatable_num_new_engines.remote())
        self.version += 1
        ray.get([engine.update.remote(self.rank, self.version) for engine in engines])
        ray.get(self.barrier.wait.remote())
        return num_new


def test_trainers_that_call_back_from_every_rank_do_not_deadlock(cluster):
    remote = ray.remote(num_cpus=0)
    registry = remote(Registry).remote(RANKS)
    barrier = ray.remote(num_cpus=0, max_concurrency=RANKS)(Barrier).remote()
    engines = [remote(Engine).remote() for _ in range(2)]
    trainers = [remote(SlimeLikeTrainer).remote(rank, barrier) for rank in range(RANKS)]

    def wait(refs):
        return wait_for(refs, 60.0, "the test")

    def sync():
        return wait([trainer.update_weights.remote() for trainer in trainers])

    wait(registry.set_engines.remote(engines, None))
    wait([trainer.set_rollout_manager.remote(registry) for trainer in trainers])
    assert wait(registry.train_parallel_config.remote()) == {"dp_size": RANKS, "cp_size": 1}
    assert [sync(), sync()] == [[2, 2], [0, 0]]

    ray.kill(engines[1])
    engines[1] = remote(Engine).remote()
    wait(registry.replace_engine.remote(1, engines[1]))
    assert [sync(), sync()] == [[1, 1], [0, 0]]
    stayed, came = wait([engine.seen.remote() for engine in engines])
    assert sorted(stayed[1]) == [1, 1, 2, 2, 3, 3, 4, 4] and sorted(came[1]) == [3, 3, 4, 4]
    assert sorted(stayed[0]) == [0, 0, 1, 1] and sorted(came[0]) == [0, 1]
