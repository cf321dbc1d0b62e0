"""Ray across containers, as far as one container shows it; tests/launch/test_two_nodes.py has two."""

import time

import pytest

from launch.ray_cluster import ModalRayCluster, NodeLost, Place
from launch.resources import Resources, local_secrets
from rlhaiku.errors import BadInput, RunFailed


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """`_start` sets variables; they are put back."""
    from launch.ray_runtime import ENVIRONMENT

    for name in ENVIRONMENT:
        monkeypatch.setenv(name, ENVIRONMENT[name])
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)


def test_a_cluster_of_one_asks_nobody():
    assert Place.discover(1) == Place(0, ("127.0.0.1",))


@pytest.mark.parametrize(("addresses", "head"), [
    (("10.0.0.1", "10.0.0.2"), "10.0.0.1:6379"),
    (("fd00::1", "fd00::2"), "[fd00::1]:6379"),
])
def test_workers_join_the_head_at_its_own_address(addresses, head):
    with_head = ModalRayCluster(Place(0, addresses), 4)._argv()
    assert "--head" in with_head and f"--node-ip-address={addresses[0]}" in with_head and "--block" in with_head
    joining = ModalRayCluster(Place(1, addresses), 4)._argv()
    assert f"--address={head}" in joining and f"--node-ip-address={addresses[1]}" in joining
    assert "--head" not in joining


def test_the_dashboard_is_off_or_on_loopback_behind_a_token(monkeypatch):
    one = Place.discover(1)
    assert "--include-dashboard=false" in ModalRayCluster(one, 1)._argv()
    cluster = ModalRayCluster(one, 1, dashboard=True)
    assert {"--include-dashboard=true", "--dashboard-host=127.0.0.1"} <= set(cluster._argv())
    with pytest.raises(BadInput, match="RAY_AUTH_TOKEN"):
        cluster.__enter__()
    monkeypatch.setenv("RAY_AUTH_TOKEN", "token")
    assert cluster._auth_mode() == "token"
    assert not any("token" in part for part in cluster._argv())


def test_a_worker_gives_up_on_a_head_that_never_comes():
    started = time.monotonic()
    worker = ModalRayCluster(Place(1, ("127.0.0.1", "127.0.0.2")), 1, start_timeout_s=0.5)
    worker._port = 1  # nobody listens there
    with pytest.raises(RunFailed, match=r"rank 1 waited for the head at 127\.0\.0\.1:1"):
        worker.__enter__()
    assert time.monotonic() - started < 20


def test_a_node_whose_ray_ends_says_so_at_once(monkeypatch):
    head = ModalRayCluster(Place.discover(1), 1)
    monkeypatch.setattr(head, "_argv", lambda: ["sh", "-c", "echo no such option; exit 3"])
    with pytest.raises(NodeLost, match=r"(?s)ended with status 3.*no such option"):
        head.__enter__()


def test_the_environment_chooses_the_machines():
    chosen = {"RLHAIKU_GPU": "H100!:4", "RLHAIKU_NODES": "2", "RLHAIKU_SECRETS": "a,b", "RLHAIKU_TIMEOUT_S": "7200"}
    resources = Resources.from_environment(chosen)
    assert (resources.gpus_per_node, resources.nodes, resources.secrets) == (4, 2, ("a", "b"))
    assert resources.stop_after_s == pytest.approx(7056)
    assert Resources.from_environment(resources.environment) == resources, "the containers agree"


@pytest.mark.parametrize(("environment", "message"), [
    ({"RLHAIKU_GPU": "H100:9"}, "1 to 8 GPUs"),
    ({"RLHAIKU_GPU": "H100:8; rm"}, "1 to 8 GPUs"),
    ({"RLHAIKU_NODES": "0"}, "above 0"),
    ({"RLHAIKU_NODES": "two"}, "above 0"),
])
def test_machines_that_do_not_exist_are_refused(environment, message):
    with pytest.raises(BadInput, match=message):
        assert Resources.from_environment(environment).gpus_per_node


def test_only_known_variables_travel_as_secrets():
    assert local_secrets({"HF_TOKEN": "t", "LLM_JUDGE_URL": "", "PATH": "/bin"}) == {"HF_TOKEN": "t"}
