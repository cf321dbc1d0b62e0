"""Scores a model behind an OpenAI-compatible URL on the held-out prompts, as a deployed `launch/serve.py` is."""

import asyncio
import os
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp

from launch.checks import data_directory
from rlhaiku.config import RunConfig
from rlhaiku.errors import BadInput, RunFailed
from rlhaiku.evaluation import Answer, EvalSummary, summarize
from rlhaiku.haiku.dataset import load_rows
from rlhaiku.prompts import choose_eval_prompts
from rlhaiku.types import Prompt

CONCURRENT_REQUESTS = 32
"""As many as one container of `launch/serve.py` takes."""
START_S = 20 * 60.0
"""For one answer; the first one may have to wait for a container and its weights."""
PROXY_HEADERS = {"Modal-Key": "RLHAIKU_SERVE_MODAL_KEY", "Modal-Secret": "RLHAIKU_SERVE_MODAL_SECRET"}


def evaluate_url(config: RunConfig, url: str, model: str) -> EvalSummary:
    """Asks for the configuration's evaluation, `samples_per_prompt` answers to each held-out prompt.

    The proxy auth token of the workspace comes from RLHAIKU_SERVE_MODAL_KEY and _SECRET, a server's own key from
    RLHAIKU_SERVE_API_KEY. Raises BadInput for a URL that is none, RunFailed if the server does not answer.
    """
    if not url.startswith(("http://", "https://")):
        raise BadInput("--url must be an http(s) URL", url, "`modal deploy launch/serve.py` prints it.")
    rows = {row["prompt_id"]: row for row in load_rows(data_directory(config.data.path), "test")}
    prompts = [Prompt(name, row["topic"], "", ()) for name, row in rows.items()]
    chosen = [rows[prompt.prompt_id] for prompt in choose_eval_prompts(prompts, config.evaluation.num_prompts)]
    return summarize(asyncio.run(_ask_all(config, url, model, chosen)))


async def _ask_all(config: RunConfig, url: str, model: str, rows: list[dict[str, Any]]) -> list[Answer]:
    evaluation = config.evaluation
    body = {
        "model": model, "n": evaluation.samples_per_prompt, "temperature": evaluation.temperature,
        "max_tokens": evaluation.max_tokens, "chat_template_kwargs": {"enable_thinking": False},
        # Said, because vLLM takes what is not from the model's generation_config.json, and a run samples from all.
        "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0,
    }  # fmt: skip
    headers = {header: value for header, name in PROXY_HEADERS.items() if (value := os.environ.get(name))}
    if key := os.environ.get("RLHAIKU_SERVE_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    endpoint = url.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=CONCURRENT_REQUESTS),
        timeout=aiohttp.ClientTimeout(total=6 * START_S, sock_connect=30, sock_read=START_S),
        headers=headers,
    ) as session:
        try:
            answers = [_ask(session, endpoint, body, row) for row in rows]
            return [answer for several in await asyncio.gather(*answers) for answer in several]
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
            # The chain is cut: aiohttp's errors may hold the request with its headers.
            raise RunFailed(f"{endpoint} must answer with chat completions; {type(error).__name__}") from None


async def _ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any], row: dict[str, Any]) -> list[Answer]:
    choices = (await _answer(session, url, body | {"messages": row["messages"]}))["choices"]
    return [Answer(row["prompt_id"], row["topic"], choice["message"]["content"] or "") for choice in choices]


async def _answer(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> Any:  # noqa: ANN401  (JSON)
    """The server's answer; after 150 seconds Modal says 303 and where to ask for it, perhaps again and again.

    Nowhere else than at the same host, since the keys go along. Raises RunFailed.
    """
    deadline_s = asyncio.get_running_loop().time() + START_S
    response = await session.post(url, json=body, allow_redirects=False)
    while response.status == 303 and asyncio.get_running_loop().time() < deadline_s:
        response.release()
        there = urljoin(str(response.url), response.headers.get("Location", ""))
        if urlsplit(there)[:2] != urlsplit(url)[:2]:
            raise RunFailed(f"{url} must answer itself; it sent us to {urlsplit(there).netloc}")
        response = await session.get(there, allow_redirects=False)
    async with response:
        if response.status != 200:
            raise RunFailed(f"{url} must answer with status 200; it answered {response.status}. "
                            "Is the proxy auth token set, and the model's name right?")
        return await response.json()
