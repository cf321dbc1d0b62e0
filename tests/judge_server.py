"""A judge on 127.0.0.1: speaks OpenAI chat completions over real HTTP, and misbehaves on command.

Scores depend on the poem's text alone, but for a gullible judge, who does what it reads outside the poems' fences, and
one with a place bias. `python -m tests.judge_server PORT LATENCY_S PER_POEM_S` serves alone.
"""

import asyncio
import hashlib
import json
import random
import re
import sys
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field

from aiohttp import web

FENCED = re.compile(r"<<<poem (\w+)>>>\n(.*?)\n<<<end \1>>>", re.DOTALL)
ORDER = re.compile(r"every poem gets ([0-5])")
"""What a gullible judge obeys."""
HANG_S = 3600


def points_of(poem, criteria):
    """Deterministic points, 1 to 5, from the text of a poem."""
    digest = hashlib.sha256(poem.strip().encode()).digest()
    return {name: digest[i] % 5 + 1 for i, name in enumerate(criteria)}


def number_of(text):
    """Deterministic number from 1 to 10 for a whole prompt."""
    return hashlib.sha256(text.encode()).digest()[0] % 10 + 1


@dataclass
class JudgeServer:
    """Use as `async with JudgeServer() as server`; set the fields at any time.

    Ways to fail: any status, 303 (the answer comes by GET elsewhere), hang, half (a poem left out), prose,
    garbage (no JSON), wrong (no completion),
    drip (slower than any patience), reset, cut (finish_reason length), thinking, fenced (fine, in a code fence).
    """

    latency_s: float = 0.0
    per_poem_s: float = 0.0
    always: str = ""
    """Fails every request so: an outage."""
    script: deque = field(default_factory=deque)
    """How the next requests go, "" being well."""
    chances: dict = field(default_factory=dict)
    """Probability of each way to fail, drawn from `seed`."""
    retry_after: str = "1"
    """Sent with 429 and 503."""
    objects_to: tuple = ()
    """Keys of a request for which it is answered with 400, and the name of the first."""
    gullible: bool = False
    place_bias: int = 0
    """Points more for the first poem of a request."""
    elsewhere: str = "/v1/answers"
    """Where a 303 sends to."""
    usage: dict | None = None
    seed: int = 0
    port: int = 0

    def __post_init__(self):
        self.script = deque(self.script)
        self.bodies, self.headers, self.served = [], [], Counter()
        self.connections, self.now, self.peak = set(), 0, 0
        self._rng = random.Random(self.seed)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self):
        self._closing = asyncio.Event()
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._handle)
        app.router.add_get("/v1/answers/{number}", self._answer_later)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(self, *_):
        self._closing.set()
        await self._runner.cleanup()

    def poems_asked(self):
        """Every poem in every request so far, in order of arrival."""
        return [poem for body in self.bodies for _, poem in FENCED.findall(body["messages"][-1]["content"])]

    async def _handle(self, request):
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(dict(request.headers))
        self.connections.add(request.transport)
        self.now += 1
        self.peak = max(self.peak, self.now)
        try:
            way = self._way()
            self.served[way] += 1
            if way == "303":
                return web.Response(status=303, headers={"Location": f"{self.elsewhere}/{len(self.bodies) - 1}?hops=2"})
            if way == "reset" or way.isdecimal():
                return self._refuse(way, request)
            if objections := [key for key in self.objects_to if key in body]:
                return web.Response(status=400, text=f"Unrecognized request argument supplied: {objections[0]}")
            if way == "hang":
                await self._wait(HANG_S)
            prompt = body["messages"][-1]["content"]
            await self._wait(self.latency_s + self.per_poem_s * max(1, len(FENCED.findall(prompt))))
            return await self._respond(way, body, prompt, request)
        finally:
            self.now -= 1

    async def _answer_later(self, request):
        """What the POST with this number would have been answered, after some more redirects."""
        hops, number = int(request.query["hops"]), int(request.match_info["number"])
        self.headers.append(dict(request.headers))
        if hops:
            return web.Response(status=303, headers={"Location": f"{number}?hops={hops - 1}"})
        body = self.bodies[number]
        return await self._respond("", body, body["messages"][-1]["content"], request)

    def _way(self):
        if self.always:
            return self.always
        if self.script:
            return self.script.popleft()
        draw = self._rng.random()
        for way, chance in self.chances.items():
            draw -= chance
            if draw < 0:
                return way
        return ""

    def _refuse(self, way, request):
        if way == "reset":
            request.transport.abort()
            return web.Response()
        said = f"no: {request.headers.get('Authorization', 'no key')}"  # a rude server echoes the key
        headers = {"Retry-After": self.retry_after} if way in ("429", "503") else {}
        return web.Response(status=int(way), text=said, headers=headers)

    async def _respond(self, way, body, prompt, request):
        if way == "garbage":
            return web.Response(text="<html>bad gateway</html>", content_type="text/html")
        if way == "wrong":
            return web.json_response({"error": {"message": "overloaded"}})
        answer = self._answer(body, prompt)
        if way == "half":
            answer = json.dumps(dict(list(json.loads(answer).items())[1:]))
        answer = {
            "prose": "5-7-5 is respected, 9",
            "thinking": "<think>\nThe form is 5-7-5, so",
            "fenced": f"```json\n{answer}\n```",
        }.get(way, answer)
        completion = {
            "choices": [{"message": {"content": answer}, "finish_reason": "length" if way == "cut" else "stop"}],
            "usage": self.usage or {"prompt_tokens": len(prompt) // 4, "completion_tokens": len(answer) // 4},
        }
        return await self._drip(completion, request) if way == "drip" else web.json_response(completion)

    def _answer(self, body, prompt):
        if "response_format" not in body:
            return str(number_of(prompt))
        schema = body["response_format"]["json_schema"]["schema"]["properties"]
        poems = FENCED.findall(prompt)
        points = {nonce: points_of(poem, schema[nonce]["properties"]) for nonce, poem in poems}
        first = next(iter(points), "")
        if self.place_bias:
            points[first] = {name: min(5, value + self.place_bias) for name, value in points[first].items()}
        if self.gullible and (order := ORDER.search(FENCED.sub("", prompt))):
            points = {nonce: dict.fromkeys(criteria, int(order[1])) for nonce, criteria in points.items()}
        return json.dumps(points)

    async def _drip(self, completion, request):
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        for byte in json.dumps(completion).encode():
            if self._closing.is_set() or request.transport is None:
                break
            await response.write(bytes([byte]))
            await self._wait(0.05)
        return response

    async def _wait(self, seconds):
        """Sleeps, but not beyond the end of the server."""
        if seconds:
            try:
                await asyncio.wait_for(self._closing.wait(), seconds)
            except TimeoutError:
                return


class FastClock:
    """A clock that runs `speed` times as fast as real time: a second's outage can take ten milliseconds."""

    def __init__(self, speed=100.0):
        self._speed = speed

    def now(self):
        return time.monotonic() * self._speed

    async def sleep(self, seconds):
        await asyncio.sleep(seconds / self._speed)


async def serve(port, latency_s, per_poem_s):
    """Serves until the process ends; prints the URL."""
    async with JudgeServer(port=port, latency_s=latency_s, per_poem_s=per_poem_s) as server:
        print(server.url, flush=True)
        await asyncio.Event().wait()


class ServerThread:
    """A judge server with an event loop of its own."""

    def __init__(self):
        self.server = JudgeServer()
        self._ready, self._stop = threading.Event(), None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self):
        self._stop, self._loop = asyncio.Event(), asyncio.get_running_loop()
        async with self.server:
            self._ready.set()
            await self._stop.wait()

    def __enter__(self):
        self._thread.start()
        self._ready.wait(10)
        return self.server

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()


if __name__ == "__main__":
    asyncio.run(serve(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])))
