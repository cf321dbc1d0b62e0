import asyncio
import os
from pathlib import Path

from aiohttp import web

from tests.sglang_stand_in import GlooStandIn


class Held(GlooStandIn):
    """Draws nothing as long as a file says so."""

    async def answer(self, request, body, how):
        while Path(os.environ["SLIME_OFFLINE"], "hold").exists():
            await asyncio.sleep(0.02)
        return await super().answer(request, body, how)


def launch_server(server_args):
    web.run_app(Held().app(), host=server_args.host, port=server_args.port, print=None, handle_signals=False)
