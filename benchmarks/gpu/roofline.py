"""What the card can do, measured in the run whose numbers are held against it.

Without a card everything here runs on the CPU, in small: enough to rehearse a benchmark with `--smoke`.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
GEMM_SIZE, COPY_BYTES = (8192, 4 << 30) if DEVICE == "cuda" else (256, 16 << 20)


@dataclass(frozen=True)
class Roofline:
    """Ceilings of this card, today."""

    name: str
    matmul_flops: float
    """Of a bf16 product of two random 8192 x 8192 matrices, per second."""
    copy_bytes: float
    """Copied from device to device in a second, counted once."""

    def __str__(self) -> str:
        return f"{self.name}: {self.matmul_flops / 1e12:.0f} TFLOP/s, copy {self.copy_bytes / 1e9:.0f} GB/s"


def device_s(work: Callable[[], object], repeats: int = 10) -> float:
    """Mean seconds of the device's own time, after three warm-ups."""
    for _ in range(3):
        work()
    if DEVICE == "cpu":
        return _host_s(work, repeats)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / repeats


def wait_for_device() -> None:
    """Until the card has done what was asked of it."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def _host_s(work: Callable[[], object], repeats: int) -> float:
    began = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - began) / repeats


def measure_roofline() -> Roofline:
    """Takes some seconds and 8 GB, which are given back."""
    matmul_s, copy_s = _matmul_s(), _copy_s()
    name = "rehearsal"
    if DEVICE == "cuda":
        torch.cuda.empty_cache()
        name = torch.cuda.get_device_name()
    line = Roofline(name, 2 * GEMM_SIZE**3 / matmul_s, COPY_BYTES / copy_s)
    print(line, flush=True)
    return line


def _matmul_s() -> float:
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
    return device_s(lambda: a @ b, 20)


def _copy_s() -> float:
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return device_s(lambda: target.copy_(source))
