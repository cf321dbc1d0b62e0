"""Seconds for each phase of a step at a real model's shape with random weights, for `slime_first_contact`."""

import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from actors.slime_sync import SlotSync
from actors.trainers.slime_shards import boxes, make_shards
from actors.waiting import wait_for_all
from benchmarks.gpu.inside import profiled_step
from benchmarks.gpu.shapes import qwen3
from benchmarks.gpu.slime_first_contact import (
    SMALL,
    Found,
    _batch,
    _cast,
    _config,
    _draw,
    _log,
    _quick,
    _since,
    _train,
)
from benchmarks.models import request


def sync_alone(size: str, overrides: Sequence[str]) -> Found:
    """Four syncs of random weights, and what a sync consists of."""
    with tempfile.TemporaryDirectory() as name:
        model = qwen3(Path(name) / "model", size, weights=True)
        settings = [*SMALL, f"model.path={model}", *overrides]
        with _cast(_config(settings), sglang_flags=_quick()) as cast:
            reports = [cast.roles.weight_sync.publish(weight_version) for weight_version in range(4)]
            found = {"sync_s": [round(each.seconds, 3) for each in reports],
                     "sync_gb": round(reports[0].num_bytes / 1e9, 3),
                     "sync_gb_per_s": round(reports[-1].num_bytes / 1e9 / reports[-1].seconds, 2)}
            _log(found)
            return found | {"sync_parts_s": _sync_parts(cast, 4)}


def speed(size: str, overrides: Sequence[str], **options: Any) -> Found:  # noqa: ANN401
    """256 and 1024 completions of 30 tokens behind prompts of 60; three times each, the first not counted."""
    with tempfile.TemporaryDirectory() as name:
        started = time.perf_counter()
        model = qwen3(Path(name) / "model", size, weights=True)
        found: Found = {"model_s": _since(started)}
        settings = [*SMALL, f"model.path={model}", "rollout.tile_groups=16", "rollout.max_tokens=30", *overrides]
        started = time.perf_counter()
        with _cast(_config(settings), **options) as cast:
            found["start_s"] = _since(started)
            weight_version = 0
            found["first_sync_s"] = round(cast.roles.weight_sync.publish(0).seconds, 3)
            _log(found)
            for count in (256, 1024):
                seconds: dict[str, list[float]] = {"rollout": [], "train": [], "sync": []}
                for turn in range(3):
                    asked = [
                        request(claim, prompt_tokens=60, max_tokens=30, group_size=8, version=weight_version)
                        for claim in range(turn * 1000, turn * 1000 + count // 8)
                    ]
                    moments = [time.perf_counter()]
                    groups = _draw(cast, asked)
                    moments.append(time.perf_counter())
                    stats = _train(cast, _batch(groups, weight_version))
                    moments.append(time.perf_counter())
                    weight_version += 1
                    report = cast.roles.weight_sync.publish(weight_version)
                    moments.append(time.perf_counter())
                    for phase, start, end in zip(seconds, moments[:-1], moments[1:], strict=True):
                        seconds[phase].append(round(end - start, 3))
                    found[str(count)] = {
                        "seconds": seconds, "tokens": stats.num_loss_tokens, "logprob_gap": stats.logprob_gap,
                        "rollout_tokens_per_s": round(stats.num_loss_tokens / seconds["rollout"][-1]),
                        "train_tokens_per_s": round(stats.num_forward_tokens / seconds["train"][-1]),
                        "sync_gb": round(report.num_bytes / 1e9, 3),
                        "sync_gb_per_s": round(report.num_bytes / 1e9 / seconds["sync"][-1], 2),
                    }
                    _log(found)
            found["sync_parts_s"] = _sync_parts(cast, weight_version + 1)
            _log(found)
            return found | {"profiled_step": _profiled_step(cast, _batch(groups[:32], weight_version))}


def _profiled_step(cast: Any, batch: Any) -> Found:  # noqa: ANN401
    """What rank 0's card did in a step."""
    trainer = cast.roles.trainer
    sent = boxes(make_shards(trainer._args, trainer._parallel_config, batch))
    calls = [(rank.handle.__ray_call__.remote(profiled_step, batch.step, sent), rank) for rank in trainer._ranks]
    found: Found = wait_for_all(calls, 120, "for a profile")[0]
    return found


def _sync_parts(cast: Any, weight_version: int) -> Found:  # noqa: ANN401
    """How long it takes either side to hand weights over, and to count what it has where that is not part of it."""
    sync = cast.roles.weight_sync

    def asked(actors: Sequence[Any], method: str, *arguments: object) -> None:
        wait_for_all([(getattr(each.handle, method).remote(*arguments), each) for each in actors], 120, method)

    parts: dict[str, Callable[[], Any]] = {
        "push": lambda: asked(sync._ranks, "push_weights", weight_version),
        "trainer_checksums": lambda: asked(sync._ranks, "sent_tensors"),
        "engine_checksums": lambda: asked(sync._engines.actors, "held_weights"),
    }
    if isinstance(sync, SlotSync):
        parts = {"fill": lambda: sync._fill(weight_version), "take": lambda: sync._take(weight_version)}
    found = {}
    for name, part in parts.items():
        started = time.perf_counter()
        part()
        found[name] = _since(started)
    return found
