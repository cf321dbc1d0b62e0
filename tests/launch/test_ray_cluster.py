"""Ray across containers, as far as one container shows it; tests/launch/test_two_nodes.py has two."""

import os
import resource
import threading
import time
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from launch import ray_cluster
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


@pytest.mark.parametrize(("ipv4", "ipv6", "expected"), [
    (("10.0.0.1", "10.0.0.2"), ("fd00::1", "fd00::2"), ("10.0.0.1", "10.0.0.2")),
    ((), ("fd00::1", "fd00::2"), ("fd00::1", "fd00::2")),
    (("10.0.0.1",), ("fd00::1", "fd00::2"), None),
])
def test_modal_is_asked_where_the_others_are(monkeypatch, ipv4, ipv6, expected):
    modal = pytest.importorskip("modal", reason="needs the extra: pip install 'rlhaiku[modal]'")

    class Cluster:
        def container_rank(self):
            return 1

        def container_ips(self, family):
            return list({"ipv4": ipv4, "ipv6": ipv6}[family])

    monkeypatch.setattr(modal, "Cluster", type("Fake", (), {"from_context": staticmethod(Cluster)}))
    if expected:
        assert Place.discover(2) == Place(1, expected)
    else:
        with pytest.raises(RunFailed, match="2 nodes needs as many addresses"):
            Place.discover(2)


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
    ray_cluster.set_environment(has_dashboard=True)
    assert os.environ["RAY_AUTH_MODE"] == "token"
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
    chosen = {"RLHAIKU_GPU": "H100!:4", "RLHAIKU_NODES": "2", "RLHAIKU_TIMEOUT_S": "7200"}
    chosen |= {"RLHAIKU_SECRETS": "a,b=KEY+OTHER"}
    resources = Resources.from_environment(chosen)
    assert (resources.gpus_per_node, resources.nodes, resources.secrets) == (4, 2, ("a", "b=KEY+OTHER"))
    assert resources.named_secrets == {"a": [], "b": ["KEY", "OTHER"]}
    assert resources.stop_after_s == pytest.approx(7056)
    assert Resources.from_environment(resources.environment) == resources, "the containers agree"


@pytest.mark.parametrize(("gpu", "nodes", "is_clustered"), [
    ("H100:8", 1, True), ("H100:8", 2, True), ("H100:4", 1, False), ("H100", 1, False), ("", 1, False),
])
def test_a_cluster_is_asked_for_only_where_modal_has_one(gpu, nodes, is_clustered):
    assert Resources(gpu=gpu, nodes=nodes).is_clustered == is_clustered


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


def worker_with(monkeypatch, answers):
    """A worker whose head answers so, one look after the other."""
    monkeypatch.setattr(ray_cluster, "WATCH_S", 0.0)
    worker = ModalRayCluster(Place(1, ("10.0.0.1", "10.0.0.2")), 1)
    looks = iter(answers)
    monkeypatch.setattr(worker, "_head_answers", lambda: next(looks))
    return worker


def test_a_worker_holds_until_the_head_has_not_answered_several_times(monkeypatch):
    worker = worker_with(monkeypatch, [True, False, False, True, False, False, False])
    with pytest.raises(NodeLost, match=r"the head at 10\.0\.0\.1:6379 has not answered"):
        worker.hold()


def test_a_worker_does_not_hold_without_its_own_ray(monkeypatch):
    worker = worker_with(monkeypatch, [])
    worker._node = type("Ended", (), {"poll": lambda self: 7})()
    with pytest.raises(NodeLost, match="ended with status 7"):
        worker.hold()


@pytest.mark.parametrize(("looks", "lost"), [
    ([2, OSError("once"), OSError("twice"), 2, OSError("again"), 1], "1 of 2 nodes are gone"),
    ([2, *[OSError("no GCS")] * 3], "Ray does not say which nodes are alive: no GCS"),
])
def test_the_head_watches_on_when_ray_does_not_answer_once(monkeypatch, looks, lost):
    monkeypatch.setattr(ray_cluster, "WATCH_S", 0.0)
    head = ModalRayCluster(Place(0, ("10.0.0.1", "10.0.0.2")), 1)
    monkeypatch.setattr(ray_cluster._thread, "interrupt_main", head._stopped.set)
    left = list(looks)

    def num_alive():
        if isinstance(look := left.pop(0), OSError):
            raise look
        return look

    monkeypatch.setattr(head, "_num_alive", num_alive)
    watch = threading.Thread(target=head._watch_nodes)
    watch.start()
    watch.join(10)
    assert head.lost == lost and not left


def test_a_machine_with_too_little_is_refused(monkeypatch):
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    with pytest.raises(RunFailed, match=r"needs 4096 open files.*is 1024"):
        ray_cluster._check_machine()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, resource.RLIM_INFINITY))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(ray_cluster.shutil, "disk_usage", lambda _: usage(1, 1, 1))
    with pytest.raises(RunFailed, match="/dev/shm must have"):
        ray_cluster._check_machine()


def test_an_image_with_an_old_ray_is_refused():
    ray_cluster._check_ray("2.60.0")
    with pytest.raises(BadInput, match=r"2\.54 or newer"):
        ray_cluster._check_ray("2.9.3")


def dashboard_that_answers(status):
    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    return HTTPServer(("127.0.0.1", 0), Dashboard)


@pytest.mark.parametrize(("status", "message"), [(401, None), (200, "401; got 200"), (403, "401; got 403")])
def test_a_dashboard_is_forwarded_only_if_it_refuses_strangers(status, message):
    with dashboard_that_answers(status) as server:
        threading.Thread(target=server.handle_request).start()
        port = server.server_address[1]
        if message is None:
            ray_cluster.check_dashboard_is_locked(port)
            return
        with pytest.raises(BadInput, match=message):
            ray_cluster.check_dashboard_is_locked(port)


def test_a_dashboard_that_is_not_there_is_not_forwarded(new_port, monkeypatch):
    monkeypatch.setattr(ray_cluster, "DASHBOARD_S", 0.3)
    with pytest.raises(RunFailed, match="must answer on port"):
        ray_cluster.check_dashboard_is_locked(int(new_port()))
