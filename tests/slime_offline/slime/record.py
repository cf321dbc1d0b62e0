"""What the fakes were started with, one JSON line each; and switches that a test sets by making files."""

import json
import os
from pathlib import Path

DIRECTORY = Path(os.environ.get("SLIME_OFFLINE", "."))
NAMES = ("NCCL_CUMEM_ENABLE", "CUDA_DEVICE_MAX_CONNECTIONS", "SGLANG_JIT_DEEPGEMM_PRECOMPILE",
         "RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES", "RAY_USE_UVLOOP")


def started(kind, index, **more):
    import ray

    context = ray.get_runtime_context()
    row = {"kind": kind, "index": index, "pid": os.getpid(), "gpus": [int(each) for each in ray.get_gpu_ids()],
           "resources": context.get_assigned_resources(), "env": {name: os.environ.get(name) for name in NAMES}} | more
    with (DIRECTORY / "started.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def switched(name):
    """Whether a test made a file of this name; it counts once."""
    try:
        (DIRECTORY / name).unlink()
    except FileNotFoundError:
        return False
    return True
