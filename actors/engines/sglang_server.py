"""SGLang's own side of an engine: its server process, and its weights as it takes, holds and counts them.

The only file that imports SGLang.
"""

import base64
import json
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from functools import cache, partial
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from actors.weight_slots import DeviceWeightSlots, hashes

LOOK_S = 0.5
"""How often a server looks whether its actor is still there."""
MOST_OF_FREE = 0.9
"""Of a card's free memory that a server is ever told to take."""
ROWS = 64
"""SGLang pads a vocabulary to a multiple of this."""
PADDED = ("model.embed_tokens.weight", "lm_head.weight")
SLOT_LOADER = "actors.engines.sglang_server.load_slot"
"""For `--custom-weight-loader`: SGLang then imports and calls what an update names as its format."""
FUSED = {"q_proj": "qkv_proj", "gate_proj": "gate_up_proj"}
"""What a projection is called with those that SGLang joins to it."""


def prepare_process() -> None:
    """Lets slime start SGLang's server in this process's name, and the server end with this process.

    slime assigns to `ServerArgs`, which SGLang has made read-only (0.5.16). A server that outlived an actor that was
    killed would keep the GPU memory that its successor needs.
    """
    from sglang.srt.entrypoints import http_server
    from sglang.srt.server_args import ServerArgs

    ServerArgs.__setattr__ = object.__setattr__
    http_server.launch_server = partial(serve_until_orphaned, os.getpid())


def share_of_free(share: float, gpu_id: int) -> float:
    """The share of a card's free memory that is as much as a share of the whole card.

    SGLang takes its share of what is free when it starts: of an engine that replaces another beside a trainer, too
    little. `gpu_id`: as the driver counts. Where it cannot be asked, the share as it is.
    """
    try:
        import pynvml
    except ImportError:
        return share
    try:
        pynvml.nvmlInit()
        memory = pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(gpu_id))
    except pynvml.NVMLError:
        return share
    wanted: float = share * memory.total / memory.free
    return min(MOST_OF_FREE, wanted)


def serve_until_orphaned(owner: int, server_args: Any) -> None:  # noqa: ANN401  (SGLang's ServerArgs)
    """The main function of a server process; ends it, its children included, soon after `owner` is gone."""
    threading.Thread(target=end_without, args=(owner,), name="owner-watch", daemon=True).start()
    from sglang.srt.entrypoints.http_server import launch_server

    launch_server(server_args)


def end_without(owner: int) -> None:
    """Kills this process and its children once its parent is not `owner` any more."""
    while os.getppid() == owner:
        time.sleep(LOOK_S)
    import psutil

    for child in psutil.Process().children(recursive=True):
        child.kill()
    os.kill(os.getpid(), signal.SIGKILL)


def engine_tensors(chunk: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Tensors under their Hugging Face names as SGLang holds them on one GPU: joined and padded.

    A chunk holds what one of the trainer's parameters becomes: one tensor, or q, k and v, or gate and up.
    """
    named = list(chunk)
    if len(named) > 1:
        path, projection, kind = named[0][0].rsplit(".", 2)
        yield f"{path}.{FUSED[projection]}.{kind}", torch.cat([tensor for _, tensor in named])
        return
    for name, tensor in named:
        rows = -tensor.shape[0] % ROWS if name in PADDED else 0
        yield name, torch.cat([tensor, tensor.new_zeros(rows, *tensor.shape[1:])]) if rows else tensor


def slot_message(file: Path, report: Path) -> str:
    """What a server's rank is sent for `load_slot`: SGLang takes named tensors, so empty ones named after two files."""
    return base64.b64encode(ForkingPickler.dumps([(str(each), torch.empty(0)) for each in (file, report)])).decode()


def load_slot(model: nn.Module, named_tensors: Iterable[tuple[str, Tensor]]) -> None:
    """SGLang's weight loader, called in its scheduler: from the trainer's memory on this card into the model's own.

    What the model then holds is counted here and left in the second file: SGLang's own count takes a launch, a wait and
    a line of JSON for each tensor.
    """
    (file, _), (report, _) = named_tensors
    sent = _opened(Path(file)).views(0)
    every = dict(model.named_parameters())
    own = {name: every[name] for name in sent}
    with torch.no_grad():
        torch._foreach_copy_(list(own.values()), list(sent.values()))
    held = hashes(own)  # waits for the copies too: the trainer may write again as soon as this is answered
    Path(report).write_text(json.dumps(held))


@cache
def _opened(file: Path) -> DeviceWeightSlots:
    return DeviceWeightSlots.open(file)


def tensor_hash(tensor: Tensor) -> str:
    """SGLang's checksum of a tensor on the GPU, over every element, as its `/weights_checker` reports it."""
    try:
        from sglang.kernels.ops.memory.gpu_tensor_hash import gpu_tensor_hash
    except ImportError:  # where it was before 0.5.17
        from sglang.srt.layers.multimodal import gpu_tensor_hash

    return f"{gpu_tensor_hash(tensor.detach()):016x}"
