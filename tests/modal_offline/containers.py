"""Containers: the client's own container entrypoint in a process of its own, for real.

A container sees the files that were uploaded and nothing else of the project, its volumes as links at their mount
paths, and no token. It reaches the plane through a unix socket of its own, which also says who is asking (requests do
not), and which works from any network namespace.
"""

import asyncio
import contextlib
import os
import pickle
import shlex
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import grpclib.server
from google.protobuf.empty_pb2 import Empty
from modal_proto import api_pb2 as pb

HOST_FILES = Path(__file__).parent / "host"
GRACE_S = 30.0
"""From the interrupt of a preempted container to its end; Modal's documentation says 30 seconds."""
IN_NAMESPACE = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-ec"]


@dataclass(frozen=True)
class Host:
    """A machine that takes one container at a time: this one, or a network namespace of this one (needs root)."""

    ipv4: str = "127.0.0.1"
    ipv6: str = "::1"
    namespace: str = ""
    image: Mapping[str, str] = field(default_factory=dict)
    """What an image's packages and the machine's driver would add: more of PYTHONPATH and PATH, and other variables."""

    def argv(self) -> list[str]:
        """A container's command line."""
        entrypoint = [sys.executable, "-m", "modal._container_entrypoint"]
        if not self.namespace:
            return entrypoint
        enter = f"mount -t tmpfs shm /dev/shm; exec nsenter --net=/run/netns/{self.namespace} {' '.join(entrypoint)}"
        return [*IN_NAMESPACE, enter]


class Container:
    """One process, and what it asks the plane."""

    def __init__(self, call: "Call", rank: int):
        self.call, self.plane, self.rank = call, call.plane, rank
        self.host = self.plane.hosts[rank]
        self.id = self.plane.new("ta")
        self.home = self.plane.root / "containers" / self.id
        self.process: asyncio.subprocess.Process | None = None
        self._ipv6 = ""
        self._has_input = self._closing = False

    def __getattr__(self, name: str):
        return getattr(self.plane, name)  # a container may ask for all that a client may ask for

    async def start(self) -> None:
        """Lays out the files and starts the process."""
        from tests.modal_offline.plane import servicer

        code = self.home / "root"
        for mount_id in self.call.function.mount_ids:
            for name, data in self.plane.mounts[mount_id].items():
                path = self.home / name.lstrip("/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
        for mount in self.call.function.volume_mounts:
            place = Path(mount.mount_path)
            if not place.is_symlink():
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(self.plane.volume(self.plane.volumes[mount.volume_id]))
        (self.home / "arguments").write_bytes(self._arguments().SerializeToString())
        self._server = grpclib.server.Server([servicer(self)])
        await self._server.start(path=str(self.home / "s"))
        self.process = await asyncio.create_subprocess_exec(
            *self.host.argv(), env=self._environment(code), cwd=code, start_new_session=True,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        self.plane.start(self._show())

    def _environment(self, code: Path) -> dict[str, str]:
        """What Modal, the image and the secrets set; nothing of this process but PATH."""
        env = {"PATH": os.environ["PATH"], "HOME": str(self.home), "LANG": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
        env["RAY_worker_niceness"] = "0"  # alone on its machine, a container's processes have nobody to give way to
        for line in self.plane.dockerfile(self.call.function.image_id):
            if line.startswith("ENV "):
                env.update(setting.split("=", 1) for setting in shlex.split(line.removeprefix("ENV ")))
        for secret_id in self.call.function.secret_ids:
            env |= self.plane.secrets[secret_id]
        more = dict(self.host.image)
        env["PATH"] = f"{more.pop('PATH', '')}:{env['PATH']}".strip(":")
        python_path = f"{code}:{HOST_FILES}:{more.pop('PYTHONPATH', '')}".strip(":")
        return env | more | {
            "PYTHONPATH": python_path, "STAND_IN_IPV6": self.host.ipv6,
            "MODAL_SERVER_URL": f"unix://{self.home / 's'}", "MODAL_IS_REMOTE": "1", "MODAL_TASK_ID": self.id,
            "MODAL_ENVIRONMENT": "main", "MODAL_CLOUD_PROVIDER": "CLOUD_PROVIDER_AWS",
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(self.home / "arguments"),
        }  # fmt: skip

    def _arguments(self) -> pb.ContainerArguments:
        function, app_id = self.call.function, self.plane.app_of[self.call.function_id]
        layout = pb.AppLayout(function_ids=self.plane.function_ids(app_id))
        for function_id in layout.function_ids.values():
            handle = self.plane.handle(function_id)
            layout.objects.append(pb.Object(object_id=function_id, function_handle_metadata=handle))
        for dependency in function.object_dependencies:
            metadata = {"volume_metadata": pb.VolumeMetadata(version=2)} if dependency.object_id[:3] == "vo-" else {}
            layout.objects.append(pb.Object(object_id=dependency.object_id, **metadata))
        return pb.ContainerArguments(
            task_id=self.id, function_id=self.call.function_id, function_def=function, app_id=app_id,
            app_layout=layout, environment_name="main",
        )  # fmt: skip

    async def _show(self) -> None:
        who = f"[{self.rank}] " if len(self.call.containers) > 1 else ""
        while line := await self.process.stdout.readline():
            self.plane.log(self.plane.app_of[self.call.function_id], who + line.decode(errors="replace"))

    def signal(self, number: int) -> None:
        """To the container's first process; SIGKILL to all of them. Any of them may have ended by itself meanwhile."""
        pids = self.pids()
        first = slice(1, 2) if self.host.namespace else slice(0, 1)
        for pid in pids if number == signal.SIGKILL else pids[first]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def pids(self) -> list[int]:
        """Its processes, whatever groups they have made for themselves; each after its parent."""
        if self.process is None or self.process.returncode is not None:
            return []
        found = [self.process.pid]
        for pid in found:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                for children in Path(f"/proc/{pid}/task").glob("*/children"):
                    found += map(int, children.read_text().split())
        return found

    async def end(self, grace_s: float, interrupt: bool) -> None:
        """No more inputs; then an interrupt, and after the grace period a kill."""
        self._closing = True
        try:
            if interrupt:
                self.signal(signal.SIGINT)
            await asyncio.wait_for(self.process.wait(), grace_s)
        except TimeoutError:
            self.signal(signal.SIGKILL)
            await self.process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)  # what it has left behind ends with it, e.g. a server
            self._server.close()

    # -- what the container's side of the client asks --------------------------------------------------------------
    def ContainerHello(self, request):
        return Empty()

    def ContainerHeartbeat(self, request):
        return pb.ContainerHeartbeatResponse()

    async def TaskClusterHello(self, request):
        """Answers when all ranks have come, as Modal does."""
        self._ipv6 = request.container_ip
        ranks = self.call.containers
        while not all(container._ipv6 for container in ranks):
            await asyncio.sleep(0.05)
        return pb.TaskClusterHelloResponse(
            cluster_id=f"cu-{self.call.id}", cluster_rank=self.rank,
            container_ips=[container._ipv6 for container in ranks],
            container_ipv4_ips=[container.host.ipv4 for container in ranks],
        )  # fmt: skip

    async def FunctionGetInputs(self, request):
        if self.call.arguments and not self._has_input:
            self._has_input = True
            item = pb.FunctionGetInputsItem(
                input_id=self.call.input_id, input=self.call.arguments, function_call_id=self.call.id,
                retry_count=self.call.retries,
            )  # fmt: skip
            return pb.FunctionGetInputsResponse(inputs=[item])
        while not self._closing:
            await asyncio.sleep(0.05)
        return pb.FunctionGetInputsResponse(inputs=[pb.FunctionGetInputsItem(kill_switch=True)])

    def FunctionPutOutputs(self, request):
        if self.rank == 0:  # of a cluster only its answer counts
            for output in request.outputs:
                self.call.settle(output.result, output.data_format)
        return Empty()

    def TaskResult(self, request):
        self.call.settle(request.result)
        return Empty()

    def VolumeCommit(self, request):
        self.plane.commits.append(self.plane.volumes[request.volume_id])
        return pb.VolumeCommitResponse(skip_reload=False)

    def VolumeReload(self, request):
        return Empty()

    def TunnelStart(self, request):
        return pb.TunnelStartResponse(host="tunnel.modal.invalid", port=443)

    def TunnelStop(self, request):
        return pb.TunnelStopResponse(exists=True)


class Call:
    """One function call: its attempts, each in fresh containers, one per rank."""

    def __init__(self, plane, call_id: str, function_id: str, arguments: pb.FunctionInput | None):
        self.plane, self.id, self.function_id, self.arguments = plane, call_id, function_id, arguments
        self.input_id = f"in-{call_id}"
        self.function: pb.Function = plane.functions[function_id]
        self.done = asyncio.Event()
        self.output = pb.FunctionGetOutputsItem(input_id=self.input_id)
        self.containers: list[Container] = []
        self.retries = self.attempts = 0
        self._settled = asyncio.Event()
        self._preempted = self._killed = False

    async def run(self) -> None:
        """Attempts until one succeeds or the retries are used up; a preemption is not a retry."""
        try:
            while not self._killed:
                self._settled.clear()
                await self._attempt()
                if self._preempted:
                    self._preempted = False
                    continue
                failed = self.output.result.status != pb.GenericResult.GENERIC_STATUS_SUCCESS
                if not failed or self.retries >= self.function.retry_policy.retries:
                    break
                self.retries += 1
        except Exception as error:
            self.settle(_failure(f"the stand-in itself failed: {error!r}"))
            raise
        finally:
            self.done.set()

    async def _attempt(self) -> None:
        self.attempts += 1
        size = max(1, self.function._experimental_group_size)
        self.containers = [Container(self, rank) for rank in range(size)]
        await asyncio.gather(*(container.start() for container in self.containers))
        exits = [asyncio.ensure_future(self._watch(container)) for container in self.containers]
        try:
            await asyncio.wait_for(self._settled.wait(), self.function.timeout_secs)
        except TimeoutError:
            self.settle(_failure(f"took longer than {self.function.timeout_secs} s"))
        succeeded = self.output.result.status == pb.GenericResult.GENERIC_STATUS_SUCCESS
        ends = (each.end(GRACE_S, interrupt=not (succeeded and each.rank == 0)) for each in self.containers)
        await asyncio.gather(*ends, *exits)

    async def _watch(self, container: Container) -> None:
        status = await container.process.wait()
        if container.rank == 0 or self.plane.is_fate_shared:
            self.settle(_failure(f"the container of rank {container.rank} exited with {status}"))

    def settle(self, result: pb.GenericResult, data_format: int = pb.DATA_FORMAT_PICKLE) -> None:
        """The attempt's outcome; the first one counts."""
        if not self._settled.is_set():
            self.output.result.CopyFrom(result)
            self.output.data_format = data_format
            self.output.retry_count = self.retries
            self._settled.set()

    def preempt(self) -> None:
        """Takes the machines away: interrupt, grace period, kill, and the same input again elsewhere."""
        self._preempted = True
        self.settle(_failure("preempted"))

    def kill(self) -> None:
        """Ends the call at once."""
        self._killed = True
        for container in self.containers:
            container.signal(signal.SIGKILL)
        self.settle(_failure("killed"))


def _failure(why: str) -> pb.GenericResult:
    error = RuntimeError(why)
    status = pb.GenericResult.GENERIC_STATUS_FAILURE
    return pb.GenericResult(status=status, exception=repr(error), data=pickle.dumps(error))
