import asyncio
import base64
import os
import pickle
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import torch
from aiohttp import web
from slime.card import pretend

from actors.engines import sglang_server
from tests.sglang_stand_in import GlooStandIn, checksum

SHAPES = {"model.layers.0.self_attn.qkv_proj.weight": (6, 2), "model.norm.weight": (1, 3)}
"""As SGLang holds what the fake trainer has."""


class Held(GlooStandIn):
    """Draws nothing as long as a file says so; updates may name a loader, as in SGLang's custom_weight_loader."""

    def __init__(self):
        super().__init__()
        self.own = {name: torch.zeros(shape, dtype=torch.bfloat16) for name, shape in SHAPES.items()}

    async def answer(self, request, body, how):
        while Path(os.environ["SLIME_OFFLINE"], "hold").exists():
            await asyncio.sleep(0.02)
        return await super().answer(request, body, how)

    async def control(self, request):
        body = await request.json() if request.method == "POST" else {}
        if messages := body.get("serialized_named_tensors"):
            module, _, name = body["load_format"].rpartition(".")
            pretend(sglang_server)
            [named] = [pickle.loads(base64.b64decode(message)) for message in messages]
            getattr(import_module(module), name)(SimpleNamespace(named_parameters=self.own.items), named)
            self.weights = {name: checksum(tensor) for name, tensor in self.own.items()}
        return await super().control(request)


def launch_server(server_args):
    web.run_app(Held().app(), host=server_args.host, port=server_args.port, print=None, handle_signals=False)
