"""What every card here can do, and what they can send each other: the ceilings of runs on several cards.

    python -m benchmarks.gpu.links [--output FILE]
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.gpu.roofline import DEVICE, device_s, measure_roofline, wait_for_device

SENT_BYTES = 4 << 30 if DEVICE == "cuda" else 4 << 20
REPEATS = 5


def pair_gbs(source: int, target: int) -> float:
    """GB/s of a copy from one card straight to another."""
    sent = torch.empty(SENT_BYTES, dtype=torch.uint8, device=f"cuda:{source}")
    received = torch.empty(SENT_BYTES, dtype=torch.uint8, device=f"cuda:{target}")
    with torch.cuda.device(source):
        return SENT_BYTES / device_s(lambda: received.copy_(sent), REPEATS) / 1e9


def collective_gbs(rank: int, ranks: int, port: int, file: str) -> None:
    """In every process: a broadcast and an all-reduce of the same bytes; the first writes GB/s of them."""
    if DEVICE == "cuda":
        torch.cuda.set_device(rank)
    store = dist.TCPStore("127.0.0.1", port, ranks, rank == 0)
    dist.init_process_group("nccl" if DEVICE == "cuda" else "gloo", store=store, rank=rank, world_size=ranks)
    sent = torch.ones(SENT_BYTES // 2, dtype=torch.bfloat16, device=DEVICE)
    broadcast = SENT_BYTES / _wall_s(lambda: dist.broadcast(sent, 0)) / 1e9
    reduce = SENT_BYTES / _wall_s(lambda: dist.all_reduce(sent)) / 1e9
    if rank == 0:
        Path(file).write_text(json.dumps({"broadcast_gbs": broadcast, "all_reduce_gbs": reduce}))
    dist.destroy_process_group()


def _wall_s(work: Callable[[], object]) -> float:
    """Mean wall seconds, after one warm-up; the ranks begin together."""
    work()
    dist.barrier()
    wait_for_device()
    began = time.perf_counter()
    for _ in range(REPEATS):
        work()
    wait_for_device()
    return (time.perf_counter() - began) / REPEATS


def measure(output: Path) -> dict[str, Any]:
    """Every card alone, every pair of neighbours, all of them together."""
    count = torch.cuda.device_count() if DEVICE == "cuda" else 2
    found: dict[str, Any] = {"cards": []}
    for card in range(count if DEVICE == "cuda" else 1):
        if DEVICE == "cuda":
            torch.cuda.set_device(card)
        line = measure_roofline()
        found["cards"].append({"name": line.name, "matmul_flops": line.matmul_flops, "copy_bytes": line.copy_bytes})
    if DEVICE == "cuda":
        found["pairs_gbs"] = {f"{a}->{b}": pair_gbs(a, b) for a in range(count) for b in range(count) if a != b}
        found["peer_access"] = torch.cuda.can_device_access_peer(0, 1) if count > 1 else None
        torch.cuda.empty_cache()
    if count > 1:
        file = output.with_suffix(".links")
        port = 20000 + os.getpid() % 20000
        torch.multiprocessing.spawn(collective_gbs, (count, port, str(file)), nprocs=count)
        found |= json.loads(file.read_text())
        file.unlink()
    return found


def main() -> None:
    """Prints what was found, and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/links.json"))
    options = parser.parse_args()
    found = measure(options.output)
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    print(options.output.read_text())


if __name__ == "__main__":
    main()
