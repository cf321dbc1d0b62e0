"""Where the judge is and how hard it may be pressed."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rlhaiku.errors import BadInput

DEFAULT_MODEL = "qwen3-4b"


@dataclass(frozen=True, slots=True)
class JudgeSettings:
    """One judge endpoint and the client's manners; raises BadInput for values that cannot work."""

    url: str
    """Base URL of an OpenAI-compatible server, with or without `/v1`."""
    model: str = DEFAULT_MODEL
    """Name of the model as the server knows it."""
    api_key: str = field(default="", repr=False)
    """Sent as a bearer token; never shown, logged, cached or recorded."""
    timeout_s: float = 60.0
    """Longest wait for one answer, reading it included."""
    max_concurrency: int = 64
    """Most requests, hence connections, at once."""
    poems_per_request: int = 8
    """Most poems of one topic in a request."""
    requests_per_s: float = 0.0
    """Token bucket over all requests, holding one second's worth; 0 is no limit."""
    max_tries: int = 12
    """Failures of one request while the judge answers others, before it is given up."""
    max_asks: int = 3
    """Times a poem is put to the judge when its answers cannot be read."""
    breaker_failures: int = 5
    """Consecutive failures, over all requests, that count as an outage."""
    probe_interval_s: float = 2.0
    """Between two probes during an outage."""
    give_up_s: float = 600.0
    """An outage (or a spell of 429) must last this long before its poems become `Unjudged`."""
    cache_path: Path | None = None
    """SQLite file on a local disk, shared by all clients that name it; None is no cache."""
    nonce_salt: str = field(default="", repr=False)
    """What the fences' nonces derive from, so that a resumed run asks the same; empty draws a new one."""
    usd_per_million: tuple[float, float] = (0.0, 0.0)
    """Price of a million prompt tokens, and of a million completion tokens."""

    def __post_init__(self) -> None:
        _check_url(self.url)
        _check_header("LLM_JUDGE_API_KEY", self.api_key)
        positive = ("timeout_s", "max_concurrency", "poems_per_request", "max_asks", "breaker_failures")
        for name in (*positive, "probe_interval_s", "give_up_s"):
            if not getattr(self, name) > 0:
                raise BadInput(f"{name} must be above 0", getattr(self, name), "Leave it out for the default.")
        if self.requests_per_s < 0:
            raise BadInput("requests_per_s must not be negative", self.requests_per_s, "0 is no limit.")
        if self.max_tries <= self.breaker_failures:
            raise BadInput(
                f"max_tries must exceed breaker_failures ({self.breaker_failures}), or an outage looks like bad poems",
                self.max_tries,
                "Raise max_tries.",
            )

    def without_key(self) -> "JudgeSettings":
        """The same settings to be sent about: whoever uses them takes the key from its own environment."""
        return replace(self, api_key="")

    @property
    def endpoint(self) -> str:
        """The full URL of the chat completions."""
        return self.url.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"


def from_environment(
    environment: Mapping[str, str] | None = None,
    *,
    required: bool = False,
    **others: Any,  # noqa: ANN401  (any other field of JudgeSettings)
) -> JudgeSettings | None:
    """Settings from `LLM_JUDGE_URL`, `_MODEL`, `_API_KEY` and `_TIMEOUT`; None when there is no URL.

    `others` are further fields of `JudgeSettings`. Raises BadInput for a bad value, or if `required` and unset.
    """
    env = os.environ if environment is None else environment
    url = env.get("LLM_JUDGE_URL", "").strip()
    if not url:
        if required:
            raise BadInput("a required judge needs LLM_JUDGE_URL", "", "Export it, or set judge.required=false.")
        return None
    modal_proxy_headers(env)  # half a token is found here, not by a worker
    model = env.get("LLM_JUDGE_MODEL", "").strip() or DEFAULT_MODEL
    if timeout := env.get("LLM_JUDGE_TIMEOUT", "").strip():
        others["timeout_s"] = _seconds(timeout)
    return JudgeSettings(url=url, model=model, api_key=env.get("LLM_JUDGE_API_KEY", "").strip(), **others)


def modal_proxy_headers(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """Headers for a judge behind Modal's proxy auth, from `LLM_JUDGE_MODAL_KEY` and `_SECRET`; empty without them.

    Read where the connections are opened, so the token is in no settings object. Raises BadInput for half a token.
    """
    env = os.environ if environment is None else environment
    names = {"Modal-Key": "LLM_JUDGE_MODAL_KEY", "Modal-Secret": "LLM_JUDGE_MODAL_SECRET"}
    headers = {header: env.get(name, "").strip() for header, name in names.items()}
    for header, name in names.items():
        _check_header(name, headers[header])
    if any(headers.values()) and not all(headers.values()):
        raise BadInput(f"{' and '.join(names.values())} go together", "one without the other", "Export both or none.")
    return headers if all(headers.values()) else {}


def _check_header(name: str, secret: str) -> None:
    if not all("!" <= char <= "~" for char in secret):
        raise BadInput(f"{name} must be printable ASCII without blanks", "a key that is not", "Copy it again.")


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadInput("LLM_JUDGE_TIMEOUT is a number of seconds", text, "For example 60.") from None


def _check_url(url: str) -> None:
    """The URL is shown in messages, so it must not hold a secret."""
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query or parts.fragment:
        shown = f"{parts.scheme}://...{parts.hostname or ''}"
        remedy = "Put the key into LLM_JUDGE_API_KEY."
        raise BadInput("LLM_JUDGE_URL must hold no user name, password or query", shown, remedy)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise BadInput("LLM_JUDGE_URL must be an http(s) URL", url, "For example http://127.0.0.1:8000/v1.")
