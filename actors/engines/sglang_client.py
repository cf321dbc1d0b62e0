"""Groups from one SGLang server, over HTTP: one request each, all at once, every one with a deadline."""

import asyncio
import hashlib
import json
import threading
from array import array
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

import aiohttp

from rlhaiku.errors import ActorFailed, WeightMismatch
from rlhaiku.types import Completion, FinishReason, Group, GroupRequest

CONNECT_S = 10.0
SERVER_ERROR = 500
NO_VERSION = -1
"""Of weights that nobody has sent: a server calls those it loaded itself `default`."""
SEED_BITS = 48

T = TypeVar("T")
Json = dict[str, Any]


class ServerGone(Exception):
    """The server does not answer, or not any more; whoever owns it must start another."""


class SglangClient:
    """Draws groups; its connections live on an event loop in a thread of its own, so any thread may ask."""

    def __init__(self, url: str, timeout_s: float, end_tokens: Sequence[int], seed: int | None = None) -> None:
        """`end_tokens` end a completion; `seed`: of the run, for a server in deterministic mode."""
        self._url, self._timeout_s, self._ends, self._seed = url, timeout_s, tuple(end_tokens), seed
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="sglang-client", daemon=True)
        self._thread.start()
        self._session: aiohttp.ClientSession = self._wait(self._open())

    def generate(self, requests: Sequence[GroupRequest]) -> list[Group]:
        """The groups of requests, drawn together, in the order of the requests.

        Raises WeightMismatch if the server's weights are not those a request names, ActorFailed for an answer that
        makes no sense, ServerGone if there is none.
        """
        return self._wait(self._all(requests))

    def weight_version(self) -> int:
        """What the server calls the weights it holds, as our number."""
        return self._wait(self._ask_version())

    def close(self) -> None:
        """Ends connections and thread."""
        self._wait(self._session.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CONNECT_S)
        self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(self._timeout_s + CONNECT_S)

    async def _open(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._timeout_s, sock_connect=CONNECT_S),
            connector=aiohttp.TCPConnector(limit=0),  # the engine is handed what it can take; nothing waits here
        )

    async def _all(self, requests: Sequence[GroupRequest]) -> list[Group]:
        return list(await asyncio.gather(*map(self._one, requests)))

    async def _ask_version(self) -> int:
        async with self._session.get(f"{self._url}/model_info") as response:
            response.raise_for_status()
            return read_version((await response.json())["weight_version"])

    async def _one(self, request: GroupRequest) -> Group:
        body = request_body(request, self._ends, self._seed)
        try:
            async with self._session.post(f"{self._url}/generate", json=body) as response:
                if response.status >= SERVER_ERROR:
                    raise ServerGone(f"{self._url} answered {response.status}: {await response.text()}")
                if response.status != 200:
                    raise ActorFailed(f"SGLang refused a request ({response.status}): {await response.text()}")
                answer = await response.json()
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
            raise ServerGone(f"{self._url} does not answer within {self._timeout_s:g} s: {error!r}") from error
        except (aiohttp.ContentTypeError, ValueError) as error:
            raise ActorFailed(f"SGLang must answer in JSON: {error}") from error
        return read_group(request, answer, self._ends)


def end_tokens(model_path: str) -> list[int]:
    """Tokens that end a completion, as a local Hugging Face directory says."""
    for name in ("generation_config.json", "config.json"):
        file = Path(model_path) / name
        said = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
        if said is not None:
            return said if isinstance(said, list) else [said]
    return []


def request_body(request: GroupRequest, ends: Sequence[int], seed: int | None = None) -> Json:
    """What SGLang's `/generate` takes for a group.

    With a seed the completions are a batch with a seed each; without, SGLang draws them from one cached prompt. Greedy
    completions are all the same, so one is drawn.
    """
    sampling, prompt = request.sampling, list(request.prompt.token_ids)
    settings = {
        "temperature": sampling.temperature,
        "max_new_tokens": sampling.max_tokens,
        "stop_token_ids": list(ends),
    }
    count = request.group_size if sampling.temperature > 0 else 1
    if seed is None or count == 1:
        return {"input_ids": prompt, "sampling_params": settings | {"n": count}, "return_logprob": True}
    seeded = [settings | {"sampling_seed": completion_seed(seed, request, index)} for index in range(count)]
    return {"input_ids": [prompt] * count, "sampling_params": seeded, "return_logprob": True}


def completion_seed(seed: int, request: GroupRequest, index: int) -> int:
    """Depends on the run's seed, the pass, the prompt and the completion's index, and on nothing else."""
    name = f"{seed}/{request.key.pass_index}/{request.key.prompt_id}/{index}".encode()
    return int.from_bytes(hashlib.sha256(name).digest()[:8]) >> (64 - SEED_BITS)


def read_group(request: GroupRequest, answer: Any, ends: Sequence[int]) -> Group:  # noqa: ANN401  (others' JSON)
    """SGLang's answer as a group; raises ActorFailed if it is not one, WeightMismatch if other weights drew it."""
    answers = answer if isinstance(answer, list) else [answer]
    completions = tuple(_read_completion(request, each, ends) for each in answers)
    repeats = request.group_size if request.sampling.temperature == 0 else 1  # greedy ones are all the same
    if len(completions) * repeats != request.group_size:
        raise ActorFailed(f"SGLang must draw {request.group_size} completions; it drew {len(completions)}")
    return Group(request.key, request.prompt, completions * repeats)


def read_version(said: object) -> int:
    """A server's word for its weights as our number; NO_VERSION if nobody has sent it any."""
    return int(said) if isinstance(said, str) and said.isdecimal() else NO_VERSION


def _read_completion(request: GroupRequest, answer: Any, ends: Sequence[int]) -> Completion:  # noqa: ANN401
    try:
        meta, text = answer["meta_info"], str(answer["text"])
        drawn = [(int(token_id), float(logprob)) for logprob, token_id, *_ in meta["output_token_logprobs"]]
        reason, version = meta["finish_reason"]["type"], read_version(meta["weight_version"])
    except (KeyError, TypeError, ValueError) as error:
        raise ActorFailed(f"SGLang's answer lacks {error!r}: {str(answer)[:300]}") from error
    if version != request.weight_version:
        raise WeightMismatch(
            f"an engine must draw with weight version {request.weight_version}; it holds {meta['weight_version']!r}"
        )
    if reason not in ("stop", "length") or not drawn:
        raise ActorFailed(f"SGLang must finish a completion; it said {str(meta['finish_reason'])[:300]}")
    token_ids, logprobs = zip(*drawn, strict=True)
    # SGLang looks at the length first, so an end token in the last place counts as `length` there.
    finish_reason: FinishReason = "stop" if token_ids[-1] in ends else "length"
    return Completion(array("i", token_ids), array("d", logprobs), text, finish_reason, version)
