"""slime's actor classes on real Ray without a GPU: a trainer of ours by its recipe, its update against our registry."""

import contextlib
import logging
import sys
from argparse import Namespace

import pytest
import ray

from actors.actor import Actor
from actors.registry import Registry
from actors.slime_contract import check_slime, contract_differences
from actors.trainers.megatron_group import load_ranks, spawn_ranks
from actors.trainers.megatron_trainer import Training
from actors.waiting import wait_for
from rlhaiku.errors import BadInput
from tests.actors.real_slime.source import function_of, slime_root

pytestmark = [pytest.mark.slime, pytest.mark.filterwarnings("ignore")]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
RANKS = 2
TIMEOUT_S = 120.0


class Updater:
    """In place of slime's weight updaters: notes what they are given."""

    def __init__(self):
        self.calls = []

    def connect_rollout_engines(self, engines, lock, **about):
        self.calls.append(("connect", len(engines), about))

    def update_weights(self):
        self.calls.append(("update",))


def trainer_class():
    """slime's TrainRayActor with the update of its MegatronTrainRayActor, on gloo."""
    import torch.distributed as dist
    from slime.ray import train_actor

    class Trainer(train_actor.TrainRayActor):
        def __init__(self, *place):
            train_actor.get_local_gpu_id = lambda: 0  # there is no GPU to ask for
            super().__init__(*place)

        def init(self, args, role, with_ref=False, with_opd_teacher=False):
            from slime.utils.distributed_utils import get_gloo_group, init_gloo_group

            dist.init_process_group("gloo")
            init_gloo_group()
            self.args, self.role = Namespace(**vars(args), rank=dist.get_rank()), role
            self.weight_updater, self.train_parallel_config = Updater(), {"dp_size": RANKS, "cp_size": 1}
            names = {
                "ray": ray, "dist": dist, "get_gloo_group": get_gloo_group, "nullcontext": contextlib.nullcontext,
                "print_memory": lambda *_: None, "logger": logging.getLogger("slime"),
            }  # fmt: skip
            update = function_of("backends/megatron_utils/actor.py", "MegatronTrainRayActor.update_weights", names)
            self.update_weights = update.__get__(self)
            return 0

        def update(self):
            self.update_weights()
            return self.weight_updater.calls

        def sleep(self, tags): ...
        def wake_up(self, tags): ...
        def train(self, rollout_id, rollout_data_ref, external_data=None): ...
        def save_model(self, rollout_id, force_sync=False): ...
        def update_weights(self): ...
        def _get_parallel_config(self): ...

    return Trainer


def wait(refs):
    return wait_for(refs, TIMEOUT_S, "the test")


def start_trainers(registry):
    """By our own start: rank 0 is asked for its address, the others are given it, then all are initialised at once."""
    pytest.importorskip("megatron.training.arguments", exc_type=ImportError)
    cls, ranks = type("MegatronTrainer", (Training, trainer_class()), {}), []
    args = Namespace(
        debug_rollout_only=False, debug_train_only=False, use_fault_tolerance=True, offload_train=False,
        use_critic=False, colocate=True, use_kl_loss=False, kl_coef=0.0,
    )
    spawn_ranks(
        lambda index, address: ray.remote(num_cpus=0)(cls).remote(RANKS, index, *address), ranks, RANKS, TIMEOUT_S
    )
    layout = load_ranks(ranks, args, Actor("the registry", registry), TIMEOUT_S)
    assert layout == {"dp_size": RANKS, "cp_size": 1}
    return [rank.handle for rank in ranks]


class Engine:
    """A handle is all that the update passes on."""


def test_slimes_update_against_our_registry(cluster):
    """From every rank, at once: call order, payload, no deadlock; a replaced engine makes all ranks connect again."""
    from slime.ray.utils import Lock

    registry = ray.remote(num_cpus=0)(Registry).remote(RANKS)
    engine = ray.remote(num_cpus=0)(Engine)
    wait(registry.set_engines.remote([engine.remote(), engine.remote()], Lock.options(num_cpus=0).remote()))
    trainers = start_trainers(registry)

    about = {
        "engine_gpu_counts": [1, 1], "engine_gpu_offsets": [0, 1],
        "engine_parallel_configs": [{"tp_size": 1, "pp_size": 1, "ep_size": 1, "moe_dp_size": 1}] * 2,
    }  # fmt: skip
    expected = [("connect", 2, about), ("update",), ("update",)]
    for _ in range(2):
        calls = wait([trainer.update.remote() for trainer in trainers])
    assert calls == [expected] * RANKS
    wait(registry.replace_engine.remote(1, engine.remote()))
    for _ in range(2):
        calls = wait([trainer.update.remote() for trainer in trainers])
    assert calls == [[*expected, ("connect", 2, about), ("update",), ("update",)]] * RANKS


def test_without_engines_trainers_skip_the_update(cluster):
    registry = ray.remote(num_cpus=0)(Registry).remote(RANKS)
    trainers = start_trainers(registry)
    assert wait([trainer.update.remote() for trainer in trainers]) == [[], []]


def test_slimes_lock_is_held_by_one(cluster):
    from slime.ray.utils import Lock

    lock = Lock.options(num_cpus=0).remote()
    assert [wait(lock.acquire.remote()), wait(lock.acquire.remote())] == [True, False]
    wait(lock.release.remote())
    assert wait(lock.acquire.remote())


def test_the_installed_slime_keeps_the_contract():
    assert list(contract_differences(slime_root())) == []


def test_the_start_up_check_says_what_this_machine_lacks():
    from importlib.util import find_spec

    if find_spec("sglang"):
        check_slime()
    else:
        with pytest.raises(BadInput, match="no sglang"):
            check_slime()


@pytest.mark.parametrize("gpus", [1, 2])
def test_the_registry_answers_what_slimes_rollout_manager_answers(gpus):
    """slime's own methods for one group of engines, beside ours."""
    def of(name, *arguments):
        return function_of("ray/rollout.py", name, {"Any": object})(*arguments)

    engines = ["first", "second"]
    group = Namespace(sglang_overrides={}, args=Namespace(), num_gpus_per_engine=gpus, gpu_offset=0, engines=engines)
    group.parallel_config = lambda: of("ServerGroup.parallel_config", group)
    server = Namespace(server_groups=[group], engines=engines, num_new_engines=2)
    for name in ("engine_gpu_counts", "engine_gpu_offsets", "engine_parallel_configs"):
        setattr(server, name, of(f"RolloutServer.{name}", server))
    manager = Namespace(rollout_engine_lock="lock", _get_updatable_server=lambda: server)
    theirs = of("RolloutManager.get_updatable_engines_and_lock", manager)

    registry = Registry(1, gpus)
    registry.set_engines(engines, "lock")
    assert registry.get_updatable_engines_and_lock() == theirs
