"""A judge that takes 50 ms and 10 ms more for each poem of a request, all requests side by side, and next to no CPU.

    python -m benchmarks.judge_stand_in [CERTIFICATE KEY]

A bare asyncio protocol: a web framework would take as much CPU as the clients that are measured against it. Every
criterion of every poem gets 4 points; a question that asks for a plain number is answered with 8.
"""

import asyncio
import json
import re
import ssl
import sys

LATENCY_S, PER_POEM_S = 0.05, 0.01
FENCE = re.compile(rb"<<<poem (\w+)>>>")
LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


class StandIn(asyncio.Protocol):
    """One connection: requests one after the other."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport, self._received = transport, b""

    def data_received(self, data: bytes) -> None:
        """Answers once a request is whole, after as long as a judge would take."""
        self._received += data
        head, _, body = self._received.partition(b"\r\n\r\n")
        length = LENGTH.search(head)
        if not length or len(body) < int(length[1]):
            return
        self._received = b""
        nonces = list(dict.fromkeys(FENCE.findall(body, body.rindex(b'"role":'))))
        delay_s = LATENCY_S + PER_POEM_S * max(1, len(nonces))
        asyncio.get_running_loop().call_later(delay_s, self._transport.write, _reply(nonces))


def _reply(nonces: list[bytes]) -> bytes:
    points = dict.fromkeys(("relevance", "quality", "vocabulary"), 4)
    content = json.dumps({nonce.decode(): points for nonce in nonces}) if nonces else "8"
    body = json.dumps({"choices": [{"message": {"content": content}, "finish_reason": "stop"}]}).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


async def serve(pair: list[str]) -> None:
    """Serves until the process ends, over TLS if it has a certificate and its key; prints the URL."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if pair else None
    if tls:
        tls.load_cert_chain(*pair)
    server = await asyncio.get_running_loop().create_server(StandIn, "127.0.0.1", 0, backlog=2048, ssl=tls)
    print(f"http{'s' if tls else ''}://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1:]))
