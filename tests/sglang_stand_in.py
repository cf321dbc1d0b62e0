"""A server that speaks SGLang's protocol on 127.0.0.1, without a model: what it draws depends on the request alone.

Its weights are strings by name, its version is what the last update said.
"""

import asyncio
import hashlib
import random
import threading

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
            self.weights |= body["weights"]
            self.version = body.get("weight_version", self.version)
        elif name == "model_info":
            return web.json_response({"weight_version": self.version})
        elif name == "weights_checker":
            ranks = [{"checksums": dict(self.weights), "per_gpu_checksum": "0", "parallelism_info": {}}]
            return web.json_response({"success": True, "message": "", "ranks": ranks, "per_engine_checksum": "0"})
        return web.json_response({"success": True, "message": ""})

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
