"""How both sides of a comparison with TRL are started and listened to, and what must hold for it to mean anything."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

PEER_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "RAY_AUTH_MODE": "disabled", "VLLM_NO_USAGE_STATS": "1",
    "VLLM_USE_FLASHINFER_SAMPLER": "0",  # FlashInfer compiles when it starts, and is not everywhere vLLM is
    "MASTER_ADDR": "127.0.0.1",  # TRL would look up `localhost`, which not every machine knows
}
OURS = """
import json, sys, time
from pathlib import Path
from launch.local import run
from rlhaiku.config import read_config
from rlhaiku.coordinator import Coordinator
seconds, step = [], Coordinator.step
def timed(*arguments, **named):
    began = time.perf_counter()
    result = step(*arguments, **named)
    seconds.append(time.perf_counter() - began)
    return result
Coordinator.step = timed
run(read_config(Path(sys.argv[1])), output_dir=sys.argv[2])
print("SECONDS " + json.dumps(seconds), flush=True)
"""
"""A run of ours, and the wall time of each of its steps, whole: TRL's clock, too, stops for nothing. Only what is told
at a step's end before an evaluation or a checkpoint is on nobody's clock."""
MAX_GAP = 0.02
"""Mean |trainer logprob - rollout logprob|, in bf16; for a model that rounds more by itself, what two such roundings
differ by: see `own_gap`."""
LENGTHS_ALIKE = 0.15
"""Largest relative difference of the mean lengths: both draw at temperature 1 from nearly the same weights."""


def said(output: str, marker: str) -> Any:  # noqa: ANN401  (whatever JSON holds)
    """The JSON of the last line that begins with `marker`: libraries print before and after it."""
    lines = [line for line in output.splitlines() if line.startswith(marker)]
    if not lines:
        sys.exit(f"no line begins with {marker!r} in:\n{output[-3000:]}")
    return json.loads(lines[-1].removeprefix(marker))


def own_gap(model: Path, evaluation: Path) -> float:
    """Mean |bf16 logprob - fp32 logprob| of an evaluation's completions, from bf16 weights, by `transformers`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    rounded, exact = (AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16).eval() for _ in range(2))
    exact.float()  # the same weights
    gaps = []
    for row in json.loads(evaluation.read_text())["samples"]:
        prompt, completion = (tokenizer(row[of], add_special_tokens=False).input_ids for of in ("prompt", "text"))
        if completion:
            token_ids = torch.tensor([prompt + completion])
            chosen = token_ids[0, len(prompt) :, None]
            with torch.inference_mode():
                a, b = (each(token_ids).logits[0, len(prompt) - 1 : -1].float() for each in (exact, rounded))
            gaps.append((a.log_softmax(-1) - b.log_softmax(-1)).gather(-1, chosen).abs().flatten())
    return float(torch.cat(gaps).mean())


def guards(
    peers: Sequence[dict[str, Any]], ours: Sequence[dict[str, Any]], warm_up: int, rounding: float = 0.0
) -> list[str]:
    """What makes a ratio void, in words, and how long each side takes to bring its weights to its engine.

    `rounding`: the model's `own_gap`, where it was measured.
    """
    gap, largest = max(max(run["gap"]) for run in ours), max(MAX_GAP, math.sqrt(2) * rounding)
    lengths = [fmean(run["length"][warm_up] for run in side) for side in (peers, ours)]
    alike = abs(lengths[0] - lengths[1]) <= LENGTHS_ALIKE * max(lengths)
    found = [f"VOID: the logprob gap {gap:.4f} is not below {largest:.4f}"] * (gap >= largest)
    found += [f"logprob gap at most {gap:.4f}; the model's own, bf16 against fp32, is {rounding:.4f}"] * (rounding > 0)
    found += [f"VOID: the mean lengths {lengths[0]:.1f} and {lengths[1]:.1f} differ"] * (not alike)
    syncs = [[1000 * each for run in side for each in run["sync"][warm_up:]] for side in (peers, ours)]
    if all(syncs):
        theirs, mine = map(median, syncs)
        found.append(f"weights to the engine: TRL {theirs:.1f} ms, ours {mine:.1f} ms until it may read them")
    return found
