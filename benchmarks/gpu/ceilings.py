"""What the cards of this machine can do, measured in a process of its own that leaves nothing on them."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def measure_ceilings(file: Path, limit_s: float) -> dict[str, Any]:
    """What `benchmarks.gpu.links` finds, in TFLOP/s and GB/s; raises CalledProcessError or TimeoutExpired."""
    command = [sys.executable, "-m", "benchmarks.gpu.links", "--output", str(file)]
    subprocess.run(command, cwd=ROOT, timeout=limit_s, check=True, stdout=subprocess.DEVNULL)
    return ceilings(json.loads(file.read_text()))


def ceilings(found: dict[str, Any]) -> dict[str, Any]:
    """By card, by pair of cards, and of all cards together; None for what one card alone cannot show."""
    return {
        "cards": [card["name"] for card in found["cards"]],
        "matmul_tflops": [card["matmul_flops"] / 1e12 for card in found["cards"]],
        "copy_gbs": [card["copy_bytes"] / 1e9 for card in found["cards"]],
        "p2p_gbs": found.get("pairs_gbs"),
        "broadcast_gbs": found.get("broadcast_gbs"),
        "all_reduce_gbs": found.get("all_reduce_gbs"),
    }
