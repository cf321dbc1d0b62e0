"""What an actor's process can say about itself: functions that are called there with its instance.

Torch's profiler records our own processes, SGLang's its server.
"""

import gzip
import json
import os
import time
import urllib.request
from pathlib import Path
from typing import Any

import ray

from benchmarks.gpu.timeline import ON_DEVICE, Span, spans_of

LIMIT_S = 120.0


def card(_: object) -> int | None:
    """The first card that Ray gave to this process."""
    ids = ray.get_gpu_ids()
    return int(ids[0]) if ids else None


def cache_tokens(instance: Any) -> int | None:  # noqa: ANN401
    """How many tokens' keys and values an SGLang server has room for; None for other actors."""
    if not hasattr(instance, "get_url"):
        return None
    with urllib.request.urlopen(f"{instance.get_url()}/server_info", timeout=LIMIT_S) as answer:
        return int(json.loads(answer.read())["max_total_num_tokens"])


def logged(instance: Any) -> dict[str, float]:  # noqa: ANN401
    """What slime measured of its own last step, by its name; empty for other actors."""
    rows = getattr(instance, "_rows", [])
    return {key: float(value) for row in rows for key, value in row.items() if key.startswith("perf/")}


def start_profile(instance: Any, directory: str) -> None:  # noqa: ANN401
    """Begins to record the kernels of this process, or of the server behind it."""
    own = Path(directory) / str(os.getpid())
    own.mkdir(parents=True, exist_ok=True)
    if hasattr(instance, "get_url"):
        _post(instance, "start_profile", {"output_dir": str(own), "activities": ["GPU"]})
        return
    import torch
    from torch.profiler import ProfilerActivity, profile

    on_card = torch.cuda.is_available()
    instance._profiler = profile(activities=[ProfilerActivity.CUDA if on_card else ProfilerActivity.CPU])
    instance._profiler.start()


def stop_profile(instance: Any, directory: str) -> list[Span]:  # noqa: ANN401
    """When the card, or without one the CPU, was at work for this process since then; merged, in order."""
    own = Path(directory) / str(os.getpid())
    if hasattr(instance, "get_url"):
        _post(instance, "stop_profile", {})
        traces = [json.loads(gzip.decompress(file.read_bytes())) for file in own.rglob("*.gz")]
        return merged([span for trace in traces for span in spans_of(trace, ON_DEVICE)])
    import torch

    instance._profiler.stop()
    instance._profiler.export_chrome_trace(str(own / "own.trace"))
    del instance._profiler
    trace = json.loads((own / "own.trace").read_text())
    return merged(spans_of(trace, ON_DEVICE if torch.cuda.is_available() else ("cpu_op",)))


def profiled_step(instance: Any, step: int, boxes: list[Any]) -> dict[str, Any]:  # noqa: ANN401
    """One more train step of a Megatron rank: how long it took, how long its kernels did together, and the longest."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    started = time.perf_counter()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        instance.train_step(step, boxes)
        torch.cuda.synchronize()
        wall_s = time.perf_counter() - started
    events = sorted(profiled.key_averages(), key=lambda event: -event.self_device_time_total)
    return {
        "wall_s": wall_s,
        "kernels_s": sum(event.self_device_time_total for event in events) / 1e6,
        "kernels": sum(event.count for event in events),
        "most": [[event.key[:70], event.count, event.self_device_time_total / 1e6] for event in events[:14]],
    }


def merged(spans: list[Span]) -> list[Span]:
    """The same time in as few spans as it takes."""
    joined: list[Span] = []
    for began, ended in sorted(spans):
        if joined and began <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(ended, joined[-1][1])
        else:
            joined.append((began, ended))
    return joined


def _post(instance: Any, path: str, content: dict[str, Any]) -> None:  # noqa: ANN401
    request = urllib.request.Request(f"{instance.get_url()}/{path}", json.dumps(content).encode(),
                                     {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=LIMIT_S) as answer:
        answer.read()
