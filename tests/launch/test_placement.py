import pytest

from launch.placement import HEAD, count_slots, plan_placement
from rlhaiku.config import load_config
from rlhaiku.errors import BadInput


def test_the_laptop_preset_fits_two_cores():
    placement = plan_placement(load_config("laptop"), num_cores=2)
    assert placement.bundles == [{"CPU": 5.0, HEAD: 0.001}]
    assert placement.total_cpus == 5
    assert not placement.relay_bundles


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
    assert placement.relay_bundles == tuple(range(relays))


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
    assert not placement.relay_bundles


@pytest.mark.parametrize(("overrides", "engines", "ranks", "relays", "share"), [
    (["cluster.gpus_per_node=2"], [0], [0, 1], (), 0.5),
    (["cluster.gpus_per_node=2", "rollout.num_engines=2"], [0, 1], [0, 1], (0, 1), 0.3333),
    (["cluster.gpus_per_node=2", "cluster.colocate=false"], [0], [1], (1, 0), 0.5),
    (["cluster.gpus_per_node=4", "cluster.colocate=false", "rollout.num_engines=2"], [0, 1], [2, 3], (2, 0, 1), 0.5),
    (["cluster.gpus_per_node=2", "rollout.num_engines=3"], [0, 1, 0], [0, 1], (0, 1), 0.25),
    (["cluster.colocate=false"], [0], [0], (), 0.5),
    (["rollout.num_engines=5"], [0] * 5, [0], (), 0.1666),
], ids=str)
def test_several_gpus_are_shared_or_split(overrides, engines, ranks, relays, share):
    """On each card one relay, where engines are on more cards than rank 0's, which has the weights."""
    config = load_config("one-gpu", ["trainer.threads=1", *overrides])
    placement = plan_placement(config, num_cores=8)
    assert (list(placement.engine_bundles), list(placement.rank_bundles)) == (engines, ranks)
    assert (placement.relay_bundles, placement.gpu_share) == (relays, share)
    assert [bundle["GPU"] for bundle in placement.bundles] == [1.0] * config.cluster.gpus_per_node
    assert sum(bundle["CPU"] for bundle in placement.bundles) == placement.total_cpus
    assert [HEAD in bundle for bundle in placement.bundles] == [True, *(False for _ in placement.bundles[1:])]
    on_card = [*engines, *ranks, *relays]
    assert all(on_card.count(card) * share <= 1 for card in on_card)


def test_ranks_compute_at_the_same_moment():
    with pytest.raises(BadInput, match=r"2 cores.*\+ trainer 4"):
        plan_placement(load_config("one-gpu", ["cluster.gpus_per_node=2", "trainer.threads=2"]), num_cores=2)


@pytest.mark.parametrize(("overrides", "rule"), [
    (["cluster.colocate=false", "rollout.num_engines=2"], "each need some of the 2 GPUs"),
    (["cluster.num_nodes=2"], "on one node"),
])
def test_several_gpus_that_do_not_go_round(overrides, rule):
    with pytest.raises(BadInput, match=rule):
        plan_placement(load_config("one-gpu", ["cluster.gpus_per_node=2", *overrides]), num_cores=8)


@pytest.mark.parametrize(("preset", "max_staleness", "slots"), [
    ("laptop", 0, 2), ("laptop", 1, 2), ("laptop", 2, 3), ("one-gpu", 0, 1), ("one-gpu", 1, 2), ("one-gpu", 3, 4),
])
def test_slots_for_as_many_versions_as_are_alive(preset, max_staleness, slots):
    """Engines on CPUs run on the slot itself, and a version's slot is not written over while it may be read."""
    assert count_slots(load_config(preset, [f"rollout.max_staleness={max_staleness}"])) == slots
