"""Recorded conversations with a judge, one JSON object a line, for tests without one.

A request is found again by its body, so the client that records and the one that replays need the same
`JudgeSettings.nonce_salt`. Neither the address nor any header is recorded.
"""

import json
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhaiku.errors import BadInput
from rlhaiku.judge.transport import Reply, Transport


class RecordingTransport:
    """Passes requests on and appends each one with its reply to a file."""

    def __init__(self, inner: Transport, path: Path) -> None:
        self._inner = inner
        self._file = path.open("a", encoding="utf-8")

    async def post(self, body: Mapping[str, Any]) -> Reply:
        """As the inner transport; requests without a reply are not recorded."""
        reply = await self._inner.post(body)
        self._file.write(json.dumps({"request": body, "reply": asdict(reply)}) + "\n")
        self._file.flush()
        return reply

    async def close(self) -> None:
        """Closes the file and the inner transport."""
        self._file.close()
        await self._inner.close()


class ReplayTransport:
    """Answers from a file; the replies to equal requests come in the order they were recorded, the last one stays."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._replies: dict[str, deque[Reply]] = defaultdict(deque)
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            self._replies[_canonical(entry["request"])].append(Reply(**entry["reply"]))

    async def post(self, body: Mapping[str, Any]) -> Reply:
        """The recorded reply; raises BadInput for a request that is not on the cassette."""
        replies = self._replies.get(_canonical(body))
        if not replies:
            remedy = "Record again with the same settings, nonce_salt included."
            raise BadInput("a replayed request must be on the cassette", str(self._path), remedy)
        return replies.popleft() if len(replies) > 1 else replies[0]

    async def close(self) -> None:
        """Nothing to close."""


def _canonical(body: Mapping[str, Any]) -> str:
    return json.dumps(body, sort_keys=True)
