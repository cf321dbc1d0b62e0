import asyncio
import base64
import os
import pickle
from importlib import import_module
from pathlib import Path

import torch
from aiohttp import web
from slime.card import pretend

from actors.engines import sglang_server
from tests.sglang_stand_in import GlooStandIn, checksum


class Model(torch.nn.Module):
    """As SGLang holds what the fake trainer has."""

    def __init__(self):
        super().__init__()
        shapes = {"model.layers.0.self_attn.qkv_proj.weight": (6, 2), "model.norm.weight": (1, 3)}
        self.held = {name: torch.nn.Parameter(torch.zeros(shape, dtype=torch.bfloat16))
                     for name, shape in shapes.items()}

    def named_parameters(self):
        return iter(self.held.items())


class Held(GlooStandIn):
    """Draws nothing as long as a file says so; updates may name a loader, as in SGLang's custom_weight_loader."""

    def __init__(self):
        super().__init__()
        self.model = Model()

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
            getattr(import_module(module), name)(self.model, named)
            self.weights = {name: checksum(tensor.detach()) for name, tensor in self.model.named_parameters()}
        return await super().control(request)


def launch_server(server_args):
    web.run_app(Held().app(), host=server_args.host, port=server_args.port, print=None, handle_signals=False)
