import pytest

from launch.placement import plan_placement
from rlhaiku.config import load_config
from rlhaiku.errors import BadInput


def test_the_laptop_preset_fits_two_cores():
    placement = plan_placement(load_config("laptop"), num_cores=2)
    assert placement.bundles == [{"CPU": 4.0, "node:__internal_head__": 0.001}, {"CPU": 1.0}]
    assert placement.total_cpus == 5


@pytest.mark.parametrize(("overrides", "fits"), [
    (["rollout.num_engines=3"], False),
    (["rollout.threads_per_engine=2"], False),
    (["trainer.threads=3"], False),
    (["rollout.max_staleness=1"], False),
    (["rollout.max_staleness=1", "rollout.num_engines=1", "trainer.threads=1"], True),
    (["rollout.num_engines=1", "rollout.threads_per_engine=2"], True),
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
