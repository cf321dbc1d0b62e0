"""Ray across the containers of a clustered Modal function, one node per container.

    rank 0     the head: starts Ray, waits for the others, runs the driver, watches that no node is lost
    rank > 0   a worker: joins, then watches its own Ray and the head, and fails as soon as either is gone

A node is one child process, `ray start --block`: it ends when a part of Ray ends, and ends Ray when it is ended. No
`ray stop`, which looks for processes by name. A failed attempt leaves nothing that the next one could trip over.
"""

import _thread
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from launch.ray_runtime import ENVIRONMENT, OBJECT_STORE_BYTES
from rlhaiku.errors import BadInput, RunFailed

PORT = 6379
DASHBOARD_PORT = 8265
OPEN_FILES, LEAST_OPEN_FILES = 65536, 4096
"""Ray's own advice for a head, and what some tens of actors need at least."""
OLDEST_RAY = (2, 54)
"""As pyproject.toml has it."""
DASHBOARD_S = 60.0
"""For the dashboard to come up; it starts beside the rest of Ray."""
WATCH_S = 5.0
STOP_S = 10.0
"""For a node's Ray to end; one whose head has ended before it would wait for it much longer."""
FINISH_S = 60.0
"""For a driver that has lost a node to finish its step and save."""
MISSES = 3
"""Looks in a row that must fail before the head counts as gone."""


class NodeLost(RunFailed):
    """A container of the cluster, or its Ray, is gone; another attempt gets new ones."""


@dataclass(frozen=True, slots=True)
class Place:
    """This container in its cluster."""

    rank: int
    addresses: tuple[str, ...]
    """Of every container, by rank."""

    @classmethod
    def discover(cls, num_nodes: int) -> "Place":
        """Asks Modal; a cluster of one is on loopback and asks nobody. IPv4 is preferred: torch and vLLM want it."""
        if num_nodes == 1:
            return cls(0, ("127.0.0.1",))
        import modal

        cluster = modal.Cluster.from_context()
        addresses = cluster.container_ips(family="ipv4") or cluster.container_ips(family="ipv6")
        if len(addresses) != num_nodes:
            raise RunFailed(f"a cluster of {num_nodes} nodes needs as many addresses; Modal gave {addresses}")
        return cls(cluster.container_rank(), tuple(addresses))


class ModalRayCluster:
    """`with ModalRayCluster(place, num_cpus) as cluster:` has Ray running here; on the head, on all nodes."""

    def __init__(
        self, place: Place, num_cpus: int, num_gpus: int = 0, start_timeout_s: float = 600.0, dashboard: bool = False
    ) -> None:
        """`num_cpus`, `num_gpus`: of each node; `dashboard`: on the head's loopback, behind RAY_AUTH_TOKEN."""
        self.place = place
        self.lost = ""
        self._cpus, self._gpus, self._dashboard = num_cpus, num_gpus, dashboard
        self._deadline = time.monotonic() + start_timeout_s
        self._port = PORT if len(place.addresses) > 1 else free_port()
        self._node: subprocess.Popen[bytes] | None = None
        self._stopped = threading.Event()
        self._temporary = tempfile.mkdtemp(prefix="rlh-", dir="/tmp")  # socket paths end at 107 characters

    @property
    def is_head(self) -> bool:
        """Whether the driver runs here."""
        return self.place.rank == 0

    @property
    def head(self) -> str:
        """Address of the head, for `ray.init`."""
        host = self.place.addresses[0]
        return f"[{host}]:{self._port}" if ":" in host else f"{host}:{self._port}"

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        if self.lost and isinstance(error, KeyboardInterrupt):  # it was `_watch_nodes` that interrupted
            raise NodeLost(self.lost) from None

    def hold(self) -> None:
        """On a worker: returns never, raises NodeLost when this node's Ray or the head is gone."""
        misses = 0
        while misses < MISSES:
            self._require_ray()
            misses = 0 if self._head_answers() else misses + 1
            time.sleep(WATCH_S)
        raise NodeLost(f"the head at {self.head} has not answered for {MISSES * WATCH_S:.0f} s")

    def stop(self) -> None:
        """Ends this node's Ray and removes its files."""
        self._stopped.set()
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()
        if self._node is not None:
            self._node.terminate()
            try:
                self._node.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._node.kill()
                self._node.wait(STOP_S)
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _start(self) -> None:
        _check_machine()
        set_environment(self._dashboard)
        import ray  # not above: it reads its authentication mode once, when it is imported

        _check_ray(ray.__version__)
        if not self.is_head:
            self._wait_until(self._head_answers, f"the head at {self.head}")
        with open(os.path.join(self._temporary, "start.log"), "wb") as log:
            self._node = subprocess.Popen(self._argv(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        if not self.is_head:
            return
        self._wait_until(self._head_answers, "this node's Ray")
        ray.init(address=self.head, log_to_driver=False, logging_level="ERROR")
        self._wait_until(lambda: self._num_alive() == len(self.place.addresses), "all nodes to join")
        threading.Thread(target=self._watch_nodes, daemon=True).start()

    def _argv(self) -> list[str]:
        node = ["--head", f"--port={self._port}"] if self.is_head else [f"--address={self.head}"]
        dashboard = self._dashboard and self.is_head
        node += [f"--include-dashboard={str(dashboard).lower()}"] if self.is_head else []
        node += ["--dashboard-host=127.0.0.1", f"--dashboard-port={DASHBOARD_PORT}"] if dashboard else []
        return [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats", *node),
            *(f"--node-ip-address={self.place.addresses[self.place.rank]}", f"--num-cpus={self._cpus}"),
            *(f"--num-gpus={self._gpus}", f"--object-store-memory={OBJECT_STORE_BYTES}"),
            *([f"--temp-dir={self._temporary}"] if self.is_head else []),
        ]

    def _wait_until(self, done: Callable[[], bool], waiting_for: str) -> None:
        while not done():
            self._require_ray()
            if time.monotonic() > self._deadline:
                raise RunFailed(f"rank {self.place.rank} waited for {waiting_for} until its deadline\n{self._log()}")
            time.sleep(0.2)

    def _require_ray(self) -> None:
        status = self._node.poll() if self._node else None
        if status is not None:
            raise NodeLost(f"Ray of rank {self.place.rank} ended with status {status}\n{self._log()}")

    def _log(self) -> str:
        try:
            with open(os.path.join(self._temporary, "start.log"), encoding="utf-8", errors="replace") as log:
                return log.read()[-2000:]
        except OSError:
            return ""

    def _head_answers(self) -> bool:
        try:
            with socket.create_connection((self.place.addresses[0], self._port), timeout=2):
                return True
        except OSError:
            return False

    def _num_alive(self) -> int:
        import ray

        return sum(node["Alive"] for node in ray.nodes())

    def _watch_nodes(self) -> None:
        """When a node is gone: interrupts the driver, once to finish its step, then in case it waits in vain."""
        misses = 0
        while not self.lost and not self._stopped.wait(WATCH_S):
            try:
                gone = len(self.place.addresses) - self._num_alive()
            except Exception as error:  # Ray raises its own and plain ones
                misses += 1
                self.lost = f"Ray does not say which nodes are alive: {error}" if misses == MISSES else ""
                continue
            misses = 0
            if gone:  # Ray has looked several times; a node it has given up is never taken back
                self.lost = f"{gone} of {len(self.place.addresses)} nodes are gone"
        while self.lost and not self._stopped.is_set():
            _thread.interrupt_main()
            self._stopped.wait(FINISH_S)


def set_environment(has_dashboard: bool) -> None:
    """What this process and Ray's must have, on every rank, whatever a home directory or an image says.

    Before Ray is imported: it reads its authentication mode once. Raises BadInput for a dashboard without a token.
    """
    has_token = bool(os.environ.get("RAY_AUTH_TOKEN"))
    if has_dashboard and not has_token:
        raise BadInput("the dashboard runs code for whoever reaches it, so it needs RAY_AUTH_TOKEN", "none",
                       "Export one where you start the run.")
    os.environ.update(ENVIRONMENT | {"RAY_AUTH_MODE": "token" if has_token else "disabled"})


def check_dashboard_is_locked(port: int = DASHBOARD_PORT) -> None:
    """Asks the dashboard without a token, once it is there: it is about to become public.

    Raises BadInput unless it refuses, RunFailed if it never answers.
    """
    deadline = time.monotonic() + DASHBOARD_S
    while (status := _status(f"http://127.0.0.1:{port}/api/jobs/")) is None:
        if time.monotonic() > deadline:
            raise RunFailed(f"the dashboard must answer on port {port}; it has not for {DASHBOARD_S:.0f} s")
        time.sleep(0.2)
    if status != 401:
        raise BadInput("a dashboard is forwarded only if it refuses whoever has no token, with status 401", status,
                       "Choose another RLHAIKU_IMAGE, or leave RLHAIKU_DASHBOARD out.")


def _status(url: str) -> int | None:
    """Of a GET on this machine; None if nobody answers."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=5) as response:
            return int(response.status)
    except urllib.error.HTTPError as refusal:
        return refusal.code
    except OSError:
        return None


def _check_machine() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if most < LEAST_OPEN_FILES:
        raise RunFailed(f"Ray needs {LEAST_OPEN_FILES} open files; this machine's hard limit (ulimit -Hn) is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    free = shutil.disk_usage("/dev/shm").free
    if free < 2 * OBJECT_STORE_BYTES:  # Ray would fall back to /tmp without a word; weights need room as well
        raise RunFailed(f"/dev/shm must have {2 * OBJECT_STORE_BYTES} bytes free; it has {free}")


def _check_ray(version: str) -> None:
    """The image brings its own Ray; one that is too old would ignore RAY_AUTH_MODE, for example."""
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < OLDEST_RAY:
        rule = f"Ray must be {'.'.join(map(str, OLDEST_RAY))} or newer"
        raise BadInput(rule, version, "Choose another RLHAIKU_IMAGE.")


def free_port() -> int:
    """One that nobody on this machine uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
