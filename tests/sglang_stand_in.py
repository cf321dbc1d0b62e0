"""A server that speaks SGLang's protocol on 127.0.0.1, without a model: what it draws depends on the request alone.

Its weights are strings by name, its version is what the last update said.
"""

import asyncio
import gzip
import hashlib
import json
import random
import threading
import time
import zlib
from pathlib import Path

from aiohttp import web

END = 2
WORDS = ["old", "pond", "frog", "leaps", "in", "the", "sound", "of", "water", "autumn", "moon", "river", "snow", "pine"]


class SglangStandIn:
    """`script`: how the next `/generate` requests go; "" is well, else 500, 400, hang, drop, prose, abort, short."""

    def __init__(self, weights=None, version="default"):
        self.weights, self.version = dict(weights or {"model.norm.weight": "00"}), version
        self.script, self.bodies, self.calls, self.paused, self.now, self.peak = [], [], [], False, 0, 0

    def app(self):
        app = web.Application()
        app.router.add_post("/generate", self.generate)
        app.router.add_get("/health_generate", self.control)
        for name in ("flush_cache", "model_info"):
            app.router.add_get(f"/{name}", self.control)
        app.router.add_get("/server_info", self.server_info)
        app.router.add_post("/start_profile", self.start_profile)
        app.router.add_post("/stop_profile", self.stop_profile)
        for name in ("update_weight_version", "pause_generation", "continue_generation", "weights_checker",
                     "update_weights_from_tensor",
                     "init_weights_update_group", "destroy_weights_update_group", "update_weights_from_distributed"):
            app.router.add_post(f"/{name}", self.control)
        return app

    async def control(self, request):
        name = request.path.strip("/")
        body = await request.json() if request.method == "POST" else {}
        self.calls.append((name, body))
        if name == "flush_cache" and self.now:
            return web.Response(status=400, text="there are running requests")
        if name == "pause_generation":
            self.paused = True
        elif name == "continue_generation":
            self.paused = False
        elif name == "update_weight_version":
            self.version = body["new_version"]
        elif name.startswith("update_weights"):
            self.weights |= body.get("weights", {})
            self.version = body.get("weight_version", self.version)
        elif name == "model_info":
            return web.json_response({"weight_version": self.version})
        elif name == "weights_checker":
            ranks = [{"checksums": dict(self.weights), "per_gpu_checksum": "0", "parallelism_info": {}}]
            return web.json_response({"success": True, "message": "", "ranks": ranks, "per_engine_checksum": "0"})
        return web.json_response({"success": True, "message": ""})

    async def server_info(self, request):
        return web.json_response({"max_total_num_tokens": 1000})

    async def start_profile(self, request):
        self.profile = Path((await request.json())["output_dir"]), time.time()
        return web.Response(text="Start profiling.")

    async def stop_profile(self, request):
        """One kernel from the beginning to now."""
        directory, began = self.profile
        event = {"ph": "X", "cat": "kernel", "ts": began * 1e6, "dur": (time.time() - began) * 1e6}
        trace = json.dumps({"traceEvents": [event]}).encode()
        (directory / f"{began}-TP-0.trace.json.gz").write_bytes(gzip.compress(trace))
        return web.Response(text="Stop profiling.")

    async def generate(self, request):
        body = await request.json()
        self.bodies.append(body)
        self.now += 1
        self.peak = max(self.peak, self.now)
        try:
            return await self.answer(request, body, self.script.pop(0) if self.script else "")
        finally:
            self.now -= 1

    async def answer(self, request, body, how):
        await asyncio.sleep(0.01)
        if how == "hang":
            await asyncio.sleep(60)
        if how == "drop":
            request.transport.close()
        if how.isdecimal():
            return web.Response(status=int(how), text="out of sorts")
        if how == "prose":
            return web.Response(text="hello")
        if self.paused or how == "abort":
            how = "abort"
        params, ids = body["sampling_params"], body["input_ids"]
        if isinstance(params, dict):
            each = [(ids, params, i) for i in range(params.get("n", 1))]
        else:
            each = [(one, param, 0) for one, param in zip(ids, params, strict=True)]
        drawn = [self.completion(*one, how) for one in each]
        if how == "short":
            drawn = drawn[1:]
        return web.json_response(drawn if len(each) > 1 else drawn[0])

    def completion(self, ids, params, index, how):
        name = f"{ids}/{params.get('sampling_seed', index)}/{self.version}"
        rng = random.Random(hashlib.sha256(name.encode()).digest())
        length = rng.randint(1, params["max_new_tokens"])
        tokens = [rng.randint(10, 300) for _ in range(length)]
        stopped = length < params["max_new_tokens"]
        if stopped:
            tokens[-1] = END
        reason = {"type": "stop", "matched": END} if stopped else {"type": "length", "length": length}
        if how == "abort":
            reason = {"type": "abort", "message": "aborted"}
        poem = "\n".join(" ".join(rng.choices(WORDS, k=count)) for count in (4, 5, 4))
        triples = [[-rng.random() * 5, token, None] for token in tokens]
        meta = {"finish_reason": reason, "weight_version": self.version, "output_token_logprobs": triples}
        return {"text": poem, "meta_info": meta}


class GlooStandIn(SglangStandIn):
    """Joins the group that a trainer names and receives what it broadcasts: over gloo, what SGLang does over NCCL."""

    group = None

    async def control(self, request):
        name = request.path.strip("/")
        if name == "init_weights_update_group":
            self.group = await asyncio.to_thread(self.join, await request.json())
        elif name == "destroy_weights_update_group" and self.group is not None:
            from torch.distributed import destroy_process_group

            destroy_process_group(self.group)
            self.group = None
        elif name == "update_weights_from_distributed":
            await asyncio.to_thread(self.receive, await request.json())
        return await super().control(request)

    def join(self, about):
        from slime.utils.distributed_utils import init_process_group

        where = f"tcp://{about['master_address']}:{about['master_port']}"
        return init_process_group(
            backend="gloo", init_method=where, world_size=about["world_size"], rank=about["rank_offset"],
            group_name=about["group_name"],
        )

    def receive(self, about):
        import torch

        named = {}
        for name, dtype, shape in zip(about["names"], about["dtypes"], about["shapes"], strict=True):
            named[name] = torch.empty(shape, dtype=getattr(torch, dtype))
            self.group.broadcast([named[name]], torch.distributed.BroadcastOptions()).wait()
        self.weights |= held_hashes(named)


def held_hashes(named):
    """Checksums of tensors by their Hugging Face names, joined as an engine holds them."""
    from actors.engines.sglang_server import engine_tensors

    chunks = []
    for name, tensor in named.items():
        path, projection, _ = name.rsplit(".", 2) if name.count(".") > 1 else ("", "", "")
        joined = {"q_proj": "qkv", "gate_proj": ("gate", "up")}.get(projection)
        if joined:
            chunks.append([(whole := f"{path}.{each}_proj.weight", named[whole]) for each in joined])
        elif projection not in ("k_proj", "v_proj", "up_proj"):
            chunks.append([(name, tensor)])
    return {name: checksum(tensor) for chunk in chunks for name, tensor in engine_tensors(chunk)}


def checksum(tensor):
    import torch

    return f"{zlib.crc32(tensor.contiguous().view(torch.uint8).numpy().tobytes()):016x}"


class Served:
    """A stand-in on a thread of its own: `with Served(SglangStandIn()) as url`."""

    def __init__(self, server, port=0):
        self.server, self.port = server, port
        self.loop = asyncio.new_event_loop()

    def __enter__(self):
        started = threading.Event()
        self.thread = threading.Thread(target=self.run, args=(started,), daemon=True)
        self.thread.start()
        assert started.wait(10)
        return f"http://127.0.0.1:{self.port}"

    def run(self, started):
        async def start():
            self.runner = web.AppRunner(self.server.app(), shutdown_timeout=0.1)
            await self.runner.setup()
            site = web.TCPSite(self.runner, "127.0.0.1", self.port)
            await site.start()
            self.port = site._server.sockets[0].getsockname()[1]

        self.loop.run_until_complete(start())
        started.set()
        self.loop.run_forever()

    def __exit__(self, *error):
        asyncio.run_coroutine_threadsafe(self.stop(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()

    async def stop(self):
        await self.runner.cleanup()
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)
