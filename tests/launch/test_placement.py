import pytest

from launch.placement import HEAD, plan_placement
from rlhaiku.config import load_config
from rlhaiku.errors import BadInput


def test_the_laptop_preset_fits_two_cores():
    placement = plan_placement(load_config("laptop"), num_cores=2)
    assert placement.bundles == [{"CPU": 5.0, HEAD: 0.001}]
    assert placement.total_cpus == 5
    assert placement.num_relays == 0


@pytest.mark.parametrize(("overrides", "cpus", "relays"), [
    (["cluster.num_nodes=2"], [2 + 1 + 1, 1], 2),
    (["cluster.num_nodes=2", "rollout.num_engines=3", "reward.num_workers=2"], [2 + 2 + 1, 1 + 1], 2),
    (["cluster.num_nodes=3", "rollout.num_engines=2", "rollout.threads_per_engine=2"], [2 + 2 + 1, 2], 2),
    (["cluster.num_nodes=3", "rollout.num_engines=3"], [2 + 1 + 1, 1, 1], 3),
    (["cluster.num_nodes=2", "rollout.num_engines=1", "reward.num_workers=2"], [2 + 1 + 1, 1], 0),
    (["cluster.num_nodes=2", "rollout.num_engines=1"], [2 + 1 + 1], 0),
], ids=str)
def test_engines_take_turns_over_the_nodes_and_the_trainer_stays_with_the_driver(overrides, cpus, relays):
    placement = plan_placement(load_config("laptop", overrides), num_cores=2)
    assert [bundle["CPU"] for bundle in placement.bundles] == cpus
    assert [HEAD in bundle for bundle in placement.bundles] == [True, *(False for _ in cpus[1:])]
    assert placement.num_relays == relays


@pytest.mark.parametrize(("overrides", "fits"), [
    (["rollout.num_engines=3"], False),
    (["rollout.threads_per_engine=2"], False),
    (["trainer.threads=3"], False),
    (["rollout.max_staleness=1"], False),
    (["rollout.max_staleness=1", "rollout.num_engines=1", "trainer.threads=1"], True),
    (["rollout.num_engines=1", "rollout.threads_per_engine=2"], True),
    (["rollout.num_engines=4", "cluster.num_nodes=2"], True),
    (["rollout.num_engines=5", "cluster.num_nodes=2"], False),
    (["rollout.max_staleness=1", "trainer.threads=1", "cluster.num_nodes=2"], True),
])
def test_threads_at_the_same_moment_must_fit(overrides, fits):
    config = load_config("laptop", overrides)
    if fits:
        plan_placement(config, num_cores=2)
    else:
        with pytest.raises(BadInput, match="2 cores"):
            plan_placement(config, num_cores=2)


def test_one_gpu_is_shared_by_engine_and_trainer():
    placement = plan_placement(load_config("one-gpu"), num_cores=4)
    assert placement.bundles[0]["GPU"] == 1
    assert placement.gpu_share == 0.5
    assert plan_placement(load_config("laptop"), num_cores=2).gpu_share == 0


def test_engines_on_a_gpu_stay_with_the_trainer_whose_memory_they_open():
    placement = plan_placement(load_config("one-gpu", ["cluster.num_nodes=2", "reward.num_workers=3"]), num_cores=8)
    assert [bundle.get("GPU") for bundle in placement.bundles] == [1.0, None]
    assert placement.num_relays == 0
