"""What the card can do, measured in the run whose numbers are held against it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

GEMM_SIZE = 8192
COPY_BYTES = 4 << 30


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
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    for _ in range(repeats):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / repeats


def measure_roofline() -> Roofline:
    """Takes some seconds and 8 GB, which are given back."""
    matmul_s, copy_s = _matmul_s(), _copy_s()
    torch.cuda.empty_cache()
    line = Roofline(torch.cuda.get_device_name(), 2 * GEMM_SIZE**3 / matmul_s, COPY_BYTES / copy_s)
    print(line, flush=True)
    return line


def _matmul_s() -> float:
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return device_s(lambda: a @ b, 20)


def _copy_s() -> float:
    source = torch.empty(COPY_BYTES, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return device_s(lambda: target.copy_(source))
