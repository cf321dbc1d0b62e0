"""The control plane: requests in, answers out, everything kept for the tests to look at.

A request's handler is the method of its name, e.g. `AppCreate`; what has no handler fails as UNIMPLEMENTED.
"""

import asyncio
import hashlib
import inspect
import time
from collections import defaultdict
from pathlib import Path

from aiohttp import ClientConnectorError, ClientSession, web
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from grpclib import GRPCError, Status
from modal_proto import api_grpc
from modal_proto import api_pb2 as pb

from tests.modal_offline.containers import Call

SUCCESS = pb.GenericResult(status=pb.GenericResult.GENERIC_STATUS_SUCCESS)
RESULT_BYTES = 2 << 20


def servicer(target):
    """A gRPC service whose requests are answered by `target`'s methods; an async generator streams."""

    def method(name):
        async def answer(self, stream):
            request = await stream.recv_message()
            handler = getattr(target, name, None)
            if handler is None:
                raise GRPCError(Status.UNIMPLEMENTED, f"the stand-in has no {name}")
            target.saw(name, request)
            response = handler(request)
            if inspect.isasyncgen(response):
                async for message in response:
                    await stream.send_message(message)
                return
            await stream.send_message(await response if inspect.isawaitable(response) else response)

        return answer

    base = api_grpc.ModalClientBase
    return type("Servicer", (base,), {name: method(name) for name in base.__abstractmethods__})()


class Plane:
    """All apps of one test session. Volumes are directories under `root`."""

    def __init__(self, root: Path, hosts: list):
        """`hosts`: where containers run, by rank; see `containers.Host`."""
        self.root, self.hosts = root, hosts
        self.url = self.blob_url = ""
        self.is_fate_shared = True
        """Whether a cluster ends with any of its containers; what Modal does is not documented."""
        self.requests: list[tuple[str, Message]] = []
        self.functions: dict[str, pb.Function] = {}
        self.app_of: dict[str, str] = {}
        self.images: dict[str, pb.Image] = {}
        self.volumes: dict[str, str] = {}
        self.commits: list[str] = []
        self.named_secrets: dict[str, dict[str, str]] = {}
        self.secrets: dict[str, dict[str, str]] = {}
        self.mounts: dict[str, dict[str, bytes]] = {}
        self.calls: dict[str, Call] = {}
        self.deployed: dict[str, str] = {}
        self.web: dict[str, Call] = {}
        """The containers of web functions whose URL was asked, by function."""
        self._ids: dict[tuple, str] = {}
        self._files: dict[str, bytes] = {}
        self._blobs: dict[str, bytes] = {}
        self._logs: dict[str, list[str]] = defaultdict(list)
        self._ended: set[str] = set()
        self._tasks: set[asyncio.Task] = set()

    # -- for tests and containers ---------------------------------------------------------------------------------
    def function(self, app: str, name: str) -> pb.Function:
        """The newest definition of a function, as the client sent it; `app`: its name, or that it is deployed under."""
        found = [
            function for function_id, function in self.functions.items()
            if function.function_name == name
            and (function.app_name == app or self.app_of[function_id] == self.deployed.get(app))
        ]  # fmt: skip
        return found[-1]

    def last_words(self) -> str:
        """The end of everything that containers have printed."""
        return "".join(line for lines in self._logs.values() for line in lines[-20:])

    def dockerfile(self, image_id: str) -> list[str]:
        """Every build command of an image, its base's first."""
        image = self.images[image_id]
        base = [line for layer in image.base_images for line in self.dockerfile(layer.image_id)]
        return [*base, *image.dockerfile_commands]

    def volume(self, name: str) -> Path:
        """Where a volume's files are."""
        return self.root / "volumes" / name

    def saw(self, name: str, request: Message) -> None:
        """Keeps a request."""
        self.requests.append((name, request))

    def new(self, prefix: str, *key: object) -> str:
        """A new id, or the one that `key` has already got."""
        known = (prefix, *(key or (len(self._ids),)))
        return self._ids.setdefault(known, f"{prefix}-{len(self._ids)}")

    def log(self, app_id: str, text: str) -> None:
        """Shows a line at the client that runs the app."""
        self._logs[app_id].append(text)

    def start(self, coroutine) -> None:
        """Runs a coroutine beside the server."""
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def put_blob(self, request: web.Request) -> web.Response:
        """What cloud storage does with a file of more than 4 MiB."""
        data = self._blobs[request.match_info["blob"]] = await request.read()
        return web.Response(headers={"ETag": hashlib.md5(data).hexdigest()})

    async def pass_on(self, request: web.Request) -> web.Response:
        """A request to a web function's URL: starts its container if there is none, waits for its port, asks there."""
        function_id = request.match_info["function"]
        if function_id not in self.web:
            self.web[function_id] = self.call(function_id, None)
        port = self.functions[function_id].webhook_config.web_server_port
        where = f"http://127.0.0.1:{port}/{request.match_info['path']}"
        async with ClientSession() as session:
            while not self.web[function_id].done.is_set():
                try:
                    sent = session.request(request.method, where, data=await request.read(), headers=request.headers)
                    async with sent as answer:
                        return web.Response(status=answer.status, body=await answer.read(), headers=answer.headers)
                except ClientConnectorError:
                    await asyncio.sleep(0.1)
        return web.Response(status=500)

    async def stop(self) -> None:
        """Ends every container."""
        for call in self.calls.values():
            call.kill()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # -- apps -----------------------------------------------------------------------------------------------------
    def EnvironmentGetOrCreate(self, request):
        settings = pb.EnvironmentSettings(image_builder_version="2025.06", webhook_suffix="")
        metadata = pb.EnvironmentMetadata(name=request.deployment_name or "main", settings=settings)
        return pb.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=metadata)

    def AppCreate(self, request):
        app_id = self.new("ap")
        return pb.AppCreateResponse(app_id=app_id, app_page_url=f"http://modal.invalid/{app_id}")

    def AppGetByDeploymentName(self, request):
        return pb.AppGetByDeploymentNameResponse(app_id=self.deployed.get(request.name, ""))

    def AppGetLayout(self, request):
        return pb.AppGetLayoutResponse(app_layout=pb.AppLayout(function_ids=self.function_ids(request.app_id)))

    def AppPublish(self, request):
        if request.name:
            self.deployed[request.name] = request.app_id
        return pb.AppPublishResponse(url=f"http://modal.invalid/{request.name}", deployed_at=time.time())

    def AppHeartbeat(self, request):
        return Empty()

    def AppClientDisconnect(self, request):
        self._ended.add(request.app_id)
        for call in self.calls.values():
            if self.app_of[call.function_id] == request.app_id:
                call.kill()
        return Empty()

    async def AppGetLogs(self, request):
        lines, shown = self._logs[request.app_id], int(request.last_entry_id or 0)
        deadline = time.monotonic() + request.timeout
        while time.monotonic() < deadline:
            is_over = request.app_id in self._ended
            for text in lines[shown:]:
                shown += 1
                items = [pb.TaskLogs(data=text, file_descriptor=pb.FILE_DESCRIPTOR_STDOUT, timestamp=time.time())]
                yield pb.TaskLogsBatch(entry_id=str(shown), items=items)
            if is_over:
                yield pb.TaskLogsBatch(app_done=True)
                return
            await asyncio.sleep(0.05)

    # -- images, files, volumes, secrets --------------------------------------------------------------------------
    def ImageGetOrCreate(self, request):
        image_id = self.new("im", request.image.SerializeToString(deterministic=True))
        self.images[image_id] = request.image
        metadata = pb.ImageMetadata(
            image_builder_version=request.builder_version, python_version_info="3.12.0", workdir="/root"
        )
        return pb.ImageGetOrCreateResponse(image_id=image_id, result=SUCCESS, metadata=metadata)

    def MountBatchedCheckExistence(self, request):
        missing = [sha for sha in request.sha256_hex_hashes if sha not in self._files]
        return pb.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    def BlobCreate(self, request):
        blob = self.new("bl")
        urls = pb.UploadUrlList(items=[f"{self.blob_url}/{blob}"])
        return pb.BlobCreateResponse(blob_ids=[blob], upload_urls=urls)

    def MountPutFile(self, request):
        kind = request.WhichOneof("data_oneof")
        if kind:
            self._files[request.sha256_hex] = request.data if kind == "data" else self._blobs[request.data_blob_id]
        return pb.MountPutFileResponse(exists=request.sha256_hex in self._files)

    def MountGetOrCreate(self, request):
        mount_id = self.new("mo", *([request.deployment_name] if request.deployment_name else []))
        self.mounts[mount_id] = {file.filename: self._files[file.sha256_hex] for file in request.files}
        checksum = pb.MountHandleMetadata(content_checksum_sha256_hex="0" * 64)
        return pb.MountGetOrCreateResponse(mount_id=mount_id, handle_metadata=checksum)

    def VolumeGetOrCreate(self, request):
        name = request.deployment_name
        volume_id = self.new("vo", name)
        self.volumes[volume_id] = name
        self.volume(name).mkdir(parents=True, exist_ok=True)
        metadata = pb.VolumeMetadata(version=2, name=name)
        return pb.VolumeGetOrCreateResponse(volume_id=volume_id, version=2, metadata=metadata)

    def SecretGetOrCreate(self, request):
        name = request.deployment_name
        if name and name not in self.named_secrets:
            raise GRPCError(Status.NOT_FOUND, f"Secret '{name}' not found in environment 'main'")
        if missing := set(request.required_keys) - set(self.named_secrets.get(name, ())):
            raise GRPCError(Status.FAILED_PRECONDITION, f"Secret '{name}' has no {sorted(missing)}")
        secret_id = self.new("st", *([name] if name else []))
        self.secrets[secret_id] = self.named_secrets[name] if name else dict(request.env_dict)
        return pb.SecretGetOrCreateResponse(secret_id=secret_id, metadata=pb.SecretMetadata(name=name))

    # -- functions ------------------------------------------------------------------------------------------------
    def FunctionPrecreate(self, request):
        function_id = request.existing_function_id or self.new("fu")
        self.functions[function_id] = pb.Function(
            function_name=request.function_name, function_type=request.function_type,
            function_schema=request.function_schema, webhook_config=request.webhook_config,
            supported_input_formats=request.supported_input_formats,
            supported_output_formats=request.supported_output_formats,
        )  # fmt: skip
        self.app_of[function_id] = request.app_id
        return pb.FunctionPrecreateResponse(function_id=function_id, handle_metadata=self.handle(function_id))

    def FunctionCreate(self, request):
        function_id = request.existing_function_id or self.new("fu")
        sent = request.function_data.ranked_functions if request.HasField("function_data") else []
        function = sent[0].function if sent else request.function
        self.functions[function_id], self.app_of[function_id] = function, request.app_id
        data = pb.FunctionData(ranked_functions=[pb.FunctionData.RankedFunction(function=function)])
        data.MergeFrom(request.function_data)
        del data.ranked_functions[1:]
        return pb.FunctionCreateResponse(
            function_id=function_id, function=function, function_data=data, handle_metadata=self.handle(function_id)
        )

    def handle(self, function_id: str) -> pb.FunctionHandleMetadata:
        """What a client must know of a function to call it."""
        function = self.functions[function_id]
        return pb.FunctionHandleMetadata(
            function_name=function.function_name, function_type=function.function_type,
            definition_id=f"de-{function_id}", app_id=self.app_of[function_id],
            function_schema=function.function_schema, max_object_size_bytes=RESULT_BYTES,
            supported_input_formats=function.supported_input_formats,
            supported_output_formats=function.supported_output_formats,
            web_url=f"{self.blob_url}/web/{function_id}" if function.webhook_config.type else "",
        )  # fmt: skip

    def function_ids(self, app_id: str) -> dict[str, str]:
        """The functions of an app by name."""
        return {f.function_name: i for i, f in self.functions.items() if self.app_of[i] == app_id}

    def FunctionMap(self, request):
        call = self.call(request.function_id, request.pipelined_inputs[0].input)
        put = pb.FunctionPutInputsResponseItem(input_id=call.input_id, input_jwt=call.input_id)
        return pb.FunctionMapResponse(
            function_call_id=call.id, function_call_jwt=call.id, max_inputs_outstanding=1000, pipelined_inputs=[put]
        )

    async def FunctionGetOutputs(self, request):
        call = self.calls[request.function_call_id]
        try:
            await asyncio.wait_for(call.done.wait(), max(request.timeout, 0.01))
        except TimeoutError:
            return pb.FunctionGetOutputsResponse(num_unfinished_inputs=1)
        return pb.FunctionGetOutputsResponse(outputs=[call.output])

    def call(self, function_id: str, arguments: pb.FunctionInput | None) -> Call:
        """Starts a function; without arguments it is a web server that runs until it is killed."""
        call = self.calls[call_id] = Call(self, call_id := self.new("fc"), function_id, arguments)
        self.start(call.run())
        return call
