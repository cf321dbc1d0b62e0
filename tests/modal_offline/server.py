"""What tests use: the stand-in in a thread of its own, and the `modal` command pointed at it."""

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpclib.server
from aiohttp import web

from tests.modal_offline.containers import Call, Host
from tests.modal_offline.plane import Plane, servicer

ROOT = Path(__file__).parent.parent.parent


class OfflineModal:
    """`with OfflineModal(directory) as modal: modal.run("run", "launch/cluster.py")`."""

    def __init__(self, directory: Path, hosts: tuple[Host, ...] = (Host(),), environment: dict[str, str] | None = None):
        """`directory` must be short: unix sockets lie in it. `environment` is added to the command's."""
        self.plane = Plane(directory, list(hosts))
        self._environment = environment or {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> "OfflineModal":
        self._thread.start()
        self._in_loop(self._start())
        return self

    def __exit__(self, *unused) -> None:
        self._in_loop(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def environment(self) -> dict[str, str]:
        """What the `modal` command needs to find the stand-in instead of Modal."""
        own = {name: value for name, value in os.environ.items() if not name.startswith("MODAL_")}
        return own | self._environment | {
            "MODAL_SERVER_URL": self.plane.url, "MODAL_TOKEN_ID": "ak-offline", "MODAL_TOKEN_SECRET": "as-offline",
            "MODAL_CONFIG_PATH": "/nonexistent", "PYTHONPATH": str(ROOT), "COLUMNS": "200",
            "RLHAIKU_PYTHON": f"{sys.version_info[0]}.{sys.version_info[1]}",  # the containers run this one
        }  # fmt: skip

    def popen(self, *arguments: str, **environment: str) -> subprocess.Popen:
        """Starts `python -m modal ARGUMENTS` in the project's root, output and errors in one pipe."""
        return subprocess.Popen(
            [sys.executable, "-m", "modal", *arguments], cwd=ROOT, env=self.environment | environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *arguments: str, timeout_s: float = 300, **environment: str) -> tuple[int, str]:
        """Its exit status and everything it printed."""
        with self.popen(*arguments, **environment) as process:
            try:
                output, _ = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        assert "Deprecat" not in output, output
        return process.returncode, output

    def call_of(self, function: str, module: str) -> Call:
        """The newest call of a module's function, once there is one."""

        def found() -> Call | None:
            calls = [
                call for call in self.plane.calls.values()
                if (call.function.function_name, call.function.module_name) == (function, module)
            ]  # fmt: skip
            return calls[-1] if calls else None

        return self.wait_for(found)

    def wait_for(self, found: Callable[[], object], timeout_s: float = 120):
        """What `found` returns, as soon as it is true."""
        deadline = time.monotonic() + timeout_s
        while not (value := found()):
            assert time.monotonic() < deadline, f"waited in vain; last words:\n{self.plane.last_words()}"
            time.sleep(0.05)
        return value

    def serve(self, app: str, function: str) -> Call:
        """Starts the container of a deployed web function."""
        function_id = self.plane.function_ids(self.plane.deployed[app])[function]

        async def start() -> Call:
            return self.plane.call(function_id, None)

        return self._in_loop(start())

    def do(self, action: Callable[[], None]) -> None:
        """Runs `action` (e.g. `call.preempt`) where the stand-in lives."""

        async def act() -> None:
            action()

        self._in_loop(act())

    async def _start(self) -> None:
        self._server = grpclib.server.Server([servicer(self.plane)])
        await self._server.start("127.0.0.1", 0)
        self.plane.url = f"http://127.0.0.1:{self._server._server.sockets[0].getsockname()[1]}"
        storage = web.Application(client_max_size=1 << 30)
        storage.router.add_put("/{blob}", self.plane.put_blob)
        storage.router.add_route("*", "/web/{function}/{path:.*}", self.plane.pass_on)
        self._storage = web.AppRunner(storage)
        await self._storage.setup()
        site = web.TCPSite(self._storage, "127.0.0.1", 0)
        await site.start()
        self.plane.blob_url = f"http://127.0.0.1:{self._storage.addresses[0][1]}"

    async def _stop(self) -> None:
        await self.plane.stop()
        self._server.close()
        await self._server.wait_closed()
        await self._storage.cleanup()

    def _in_loop(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)
