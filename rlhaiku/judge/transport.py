"""One POST to the judge, over HTTP; a seam that cassettes and tests replace."""

import asyncio
import email.utils
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urljoin, urlsplit

from rlhaiku.errors import BadInput
from rlhaiku.judge.pacing import Transient
from rlhaiku.judge.settings import JudgeSettings, modal_proxy_headers

if TYPE_CHECKING:
    import aiohttp

CONNECT_TIMEOUT_S = 10.0
KEEPALIVE_S = 4.0
"""Idle connections go before uvicorn, which serves vLLM, drops them at 5 s: a request must not meet that moment."""

MOST_HOPS = 50
"""Redirects of one request: Modal sends one after each 150 s of waiting."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the server said; `text` never holds the key."""

    status: int
    text: str
    retry_after_s: float = 0.0
    """What `Retry-After` asks for; 0 without it."""


class Transport(Protocol):
    """Sends one request body."""

    async def post(self, body: Mapping[str, Any]) -> Reply:
        """The server's reply, whatever its status; raises Transient when there is none."""

    async def close(self) -> None:
        """Ends all connections."""


class HttpTransport:
    """One pooled aiohttp session, opened at the first request, in that request's event loop."""

    def __init__(self, settings: JudgeSettings) -> None:
        self._settings = settings
        self._session: aiohttp.ClientSession | None = None
        self._secrets = [settings.api_key]

    async def post(self, body: Mapping[str, Any]) -> Reply:
        """Posts `body` as JSON.

        The only redirect that is followed is a 303 to the same server, where the answer will be (a web function on
        Modal that takes more than 150 s); others could carry the key elsewhere.
        """
        session = self._session = self._session or self._open()
        import aiohttp

        try:
            async with asyncio.timeout(self._settings.timeout_s):
                return await self._converse(session, body)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            # The chain is cut: aiohttp's errors may hold the request with its headers.
            raise Transient(self._redacted(f"{type(error).__name__}: {error}")) from None

    async def close(self) -> None:
        """Closes the session and its connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _open(self) -> "aiohttp.ClientSession":
        try:
            import aiohttp  # only when a request goes: the rest of the package does without
        except ImportError:
            remedy = "Run pip install 'rlhaiku[local]'."
            raise BadInput("the judge client needs aiohttp", "no aiohttp", remedy) from None
        settings = self._settings
        proxy = modal_proxy_headers()
        self._secrets += proxy.values()
        headers = proxy | ({"Authorization": f"Bearer {settings.api_key}"} if settings.api_key else {})
        connect_s = min(CONNECT_TIMEOUT_S, settings.timeout_s)
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=settings.max_concurrency, keepalive_timeout=KEEPALIVE_S),
            timeout=aiohttp.ClientTimeout(total=settings.timeout_s, sock_connect=connect_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
        )

    async def _converse(self, session: "aiohttp.ClientSession", body: Mapping[str, Any]) -> Reply:
        """The last reply, after as many redirects as it takes."""
        reply, onward = await self._exchange(session.post(self._settings.endpoint, json=body, allow_redirects=False))
        hops = 0
        while onward and hops < MOST_HOPS:
            reply, onward = await self._exchange(session.get(onward, allow_redirects=False))
            hops += 1
        return reply

    async def _exchange(self, request: "AbstractAsyncContextManager[aiohttp.ClientResponse]") -> tuple[Reply, str]:
        """A reply, and the address of the one that will follow it; empty if none will, or on another server."""
        async with request as response:
            text = (await response.read()).decode("utf-8", "replace")
            retry_after_s = _retry_after_s(response.headers.get("Retry-After", ""))
            reply = Reply(response.status, self._redacted(text), retry_after_s)
            if reply.status != 303:
                return reply, ""
            here = str(response.url)
            onward = urljoin(here, response.headers.get("Location", ""))
            return reply, onward if urlsplit(onward)[:2] == urlsplit(here)[:2] else ""

    def _redacted(self, text: str) -> str:
        for secret in filter(None, self._secrets):
            text = text.replace(secret, "[key]")
        return text


def _retry_after_s(value: str) -> float:
    """`Retry-After` in seconds from now: the header holds seconds or a date; nonsense is 0."""
    if not value:
        return 0.0
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0
