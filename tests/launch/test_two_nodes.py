"""A real Ray cluster across two network namespaces, started by Modal's client: a node is lost and the run recovers."""

import json
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from launch.local import run as run_here
from rlhaiku.config import load_config
from tests.launch.test_cluster import TINY

ROOT = Path(__file__).parent.parent.parent
STEPS = 40
ONE_NODE = f"{TINY} num_steps={STEPS} rollout.num_engines=2 reward.num_workers=2"
TWO_NODES = f"{ONE_NODE} cluster.num_nodes=2"
NAMES = ("rlhaiku1", "rlhaiku2")


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts():
    """Two machines with a cable between them and no other way out."""
    from tests.modal_offline.containers import Host

    for name in NAMES:
        ip("netns", "add", name)
    try:
        ip("link", "add", "eth0", "netns", NAMES[0], "type", "veth", "peer", "name", "eth0", "netns", NAMES[1])
        for number, name in enumerate(NAMES, start=1):
            ip("-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", "eth0")
            ip("-n", name, "-6", "addr", "add", f"fd00:77::{number}/64", "dev", "eth0", "nodad")
            for device in ("lo", "eth0"):
                ip("-n", name, "link", "set", device, "up")
        yield tuple(Host(f"10.77.0.{i}", f"fd00:77::{i}", name) for i, name in enumerate(NAMES, start=1))
    finally:
        for name in NAMES:
            ip("netns", "del", name)


def actors_on(host):
    """Names of the Ray actors' processes in a network namespace."""
    found = subprocess.run(["ip", "netns", "pids", host.namespace], check=True, capture_output=True, text=True)
    titles = [Path("/proc", pid, "cmdline") for pid in found.stdout.split()]
    names = {title.read_bytes().partition(b"\0")[0].decode() for title in titles if title.exists()}
    return {name.removeprefix("ray::").partition(".")[0] for name in names if name.startswith("ray::")}


def weights(run):
    return torch.load(run / "checkpoints" / f"step-{STEPS:06d}" / "trainer.pt", weights_only=True)["weights"]


@pytest.mark.netns
def test_a_run_over_two_nodes_survives_the_loss_of_one(hosts):
    pytest.importorskip("modal", reason="needs the extra: pip install 'rlhaiku[modal]'")
    from tests.launch.two_nodes import node_of
    from tests.modal_offline.server import OfflineModal

    directory = Path(tempfile.mkdtemp(prefix="rlm-", dir="/tmp"))
    environment = {"RLHAIKU_VOLUMES": str(directory / "vol"), "RLHAIKU_NODES": "2"}
    with OfflineModal(directory, hosts, environment) as offline:
        offline.plane.is_fate_shared = False  # so that it is the head's own watch that must notice
        with subprocess.Popen(
            [sys.executable, "-m", "tests.launch.two_nodes", TWO_NODES], cwd=ROOT, env=offline.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        ) as process:  # fmt: skip
            run = offline.plane.volume("rlhaiku-runs") / "two"
            offline.wait_for(
                lambda: process.poll() is not None or (run / "checkpoints" / "step-000002").exists(), timeout_s=300
            )
            assert process.poll() is None, process.communicate()[0]
            call = offline.call_of("train", module="launch.cluster")
            actors = [actors_on(host) for host in hosts]
            offline.do(lambda: call.containers[1].signal(signal.SIGKILL))
            output, _ = process.communicate(timeout=400)
        assert process.returncode == 0, output
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        attempts, ended_with = call.attempts, weights(run)
    run_here(load_config("laptop", ONE_NODE.split()), reward=node_of, output_dir=directory / "one")
    expected = weights(directory / "one")
    shutil.rmtree(directory)
    assert {"TorchEngine", "WeightRelay", "TorchTrainer"} <= actors[0]
    assert {"TorchEngine", "WeightRelay"} <= actors[1] and "TorchTrainer" not in actors[1]
    assert "1 of 2 nodes are gone" in output and attempts == 2 and "Deprecat" not in output, output
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert any(row["reward/node"] > 1 for row in rows), "rewards were computed on the second node"
    assert any(row["reward/node"] < 2 for row in rows), "and on the first"
    assert all(torch.equal(ended_with[name], expected[name]) for name in expected), "as if there had been one node"
