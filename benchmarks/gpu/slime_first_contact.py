"""Everything about Megatron trainers and SGLang engines that only a GPU can show, in one command on such a machine.

    python3 -m benchmarks.gpu.slime_first_contact [--output DIRECTORY] [PART ...]      parts: see PARTS, at the end

Needs slime, Megatron, SGLang and Ray on PYTHONPATH. Each part is a process of its own with a deadline; a failure ends
its part alone. Prints `PASS` or `FAIL` with its findings; DIRECTORY gets for each part a PART.json with them, and a
PART.log with everything it and its actors said. The first engine on a machine takes minutes to start, since SGLang
compiles kernels then. Two of these may run side by side, each with its own CUDA_VISIBLE_DEVICES.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[2]
FOUND = "FOUND "
"""Starts the line on which a part says what it found."""
TAIL = 60
"""Lines of a failed part that are shown; its log has all."""
LOG_CHARACTERS = 20_000
"""Of each actor's log that are kept."""
GAP = 0.02
"""Largest mean |engine logprob - trainer logprob| in bf16."""
PACKAGES = ("torch", "sglang", "megatron-core", "ray", "transformers", "numpy", "sglang-kernel", "triton")
SMALL = [
    "model.path=bundled", "rollout.num_engines=1", "rollout.groups_per_step=32", "rollout.group_size=8",
    "rollout.tile_groups=16", "rollout.max_tokens=48", "trainer.lr=3e-4", "trainer.weight_decay=0.0",
    "trainer.lr_warmup_steps=3", "evaluation.max_tokens=48", "evaluation.num_prompts=64",
    "evaluation.samples_per_prompt=4", "evaluation.interval=30", "reward.num_workers=1", "cluster.gpus_per_node=1",
    "cluster.colocate=true", "cluster.wait_timeout_s=240",
]
"""The bundled model on one GPU, over the reference preset."""
APART = ("cluster.gpus_per_node=2", "cluster.colocate=false", "cluster.wait_timeout_s=90")
"""The engine on one of two cards and the trainer on the other."""
ENGINE_MEMORY = 0.4
"""Of a card that an engine has to itself: the bundled model needs little."""
QUICK = ("--sglang-disable-prefill-cuda-graph", "--sglang-cuda-graph-max-bs-decode", "64")
"""Engines that start 15 to 25 s sooner, for parts that measure no speed."""
Found = dict[str, Any]


def imports() -> Found:
    """Packages, the card, the contract, and slime's arguments from our settings."""
    import torch

    from actors.slime_contract import check_slime
    from actors.trainers.megatron_spec import _varlen_options
    from launch.placement import plan_gpus
    from launch.start_slime import SlimeOptions, slime_args

    assert torch.cuda.is_available()
    check_slime()
    config = _config(SMALL)
    started = time.perf_counter()
    args = slime_args(config, plan_gpus(config), SlimeOptions())
    return {
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "free_gb": round(torch.cuda.mem_get_info()[0] / 1e9, 1),
        "packages": {name: _version(name) for name in PACKAGES},
        "varlen_attn": sorted(_varlen_options()),
        "arguments_s": round(time.perf_counter() - started, 1),
        "engine_memory": args.sglang_mem_fraction_static,
        "fp32_grads": args.accumulate_allreduce_grads_in_fp32,
    }


def attention() -> Found:
    """Packed attention by the flash kernel against the same one sequence after the other, and its gradient."""
    import torch

    from actors.trainers.megatron_spec import _by_sequence, _flash

    torch.manual_seed(0)
    starts = torch.tensor([0, 70, 71, 200, 256], dtype=torch.int32, device="cuda")
    found = {}
    for heads, kv_heads, size in ((4, 2, 64), (32, 8, 128)):
        shapes = ((heads, size), (kv_heads, size), (kv_heads, size))
        mine = [torch.randn(256, *shape, device="cuda", dtype=torch.bfloat16, requires_grad=True) for shape in shapes]
        theirs = [each.detach().clone().requires_grad_() for each in mine]
        weight = torch.randn(256, heads, size, device="cuda", dtype=torch.bfloat16)
        gaps = []
        outputs = [attend(*inputs, starts, 129, size**-0.5)
                   for attend, inputs in ((_flash, mine), (_by_sequence, theirs))]
        for output in outputs:
            (output * weight).sum().backward()
        for a, b in [tuple(outputs), *((x.grad, y.grad) for x, y in zip(mine, theirs, strict=True))]:
            gaps.append(((a - b).abs().max() / b.abs().max()).item())
        assert max(gaps) < 0.02, gaps
        found[f"{heads}x{size}"] = gaps
    return found


def engine() -> Found:
    """Our engine alone on the real server: groups, logprobs, control beside generation, and its end with its server."""
    import ray
    import requests
    from ray.util.placement_group import placement_group

    from actors.actor import Actor
    from actors.engines.sglang_client import NO_VERSION
    from actors.reward_worker import RewardSpec
    from actors.waiting import wait_for
    from benchmarks.gpu.first_contact import _check_logprobs, _share_equal
    from launch.placement import plan_gpus
    from launch.ray_runtime import local_ray
    from launch.start_slime import SlimeOptions, SlimeSpawn, slime_args

    config = _config(SMALL)
    placement = plan_gpus(config)
    args = slime_args(config, placement, SlimeOptions())
    with local_ray(placement.total_cpus, placement.num_gpus):
        group = placement_group(placement.bundles, strategy="PACK")
        wait_for(group.ready(), 60, "Ray", "for a GPU")
        started = time.perf_counter()
        mine = Actor("the engine", SlimeSpawn(config, placement, RewardSpec(()), args, group).engine(0))
        wait_for(mine.handle.__ray_ready__.remote(), 400, mine, "to start")
        found: Found = {"start_s": _since(started)}
        _log(found)
        assert wait_for(mine.handle.weight_version.remote(), 60, mine) == NO_VERSION
        url = wait_for(mine.handle.get_url.remote(), 60, mine)
        requests.post(f"{url}/update_weight_version", json={"new_version": "0"}, timeout=60).raise_for_status()

        def draw(count: int, temperature: float = 1.0) -> list[Any]:
            asked = _haiku_requests(count, 0, temperature)
            return list(wait_for(mine.handle.generate.remote(asked), 120, mine, "for groups"))

        groups = draw(16)
        found |= _check_logprobs(groups)
        greedy = draw(2, temperature=0.0)
        assert all(c == each.completions[0] for each in greedy for c in each.completions)
        found["greedy_twice_equal"] = _share_equal(greedy, draw(2, temperature=0.0))
        started = time.perf_counter()
        draw(64)
        found["512_completions_s"] = _since(started)
        work = mine.handle.generate.remote(_haiku_requests(64, 0))
        started = time.perf_counter()
        held = wait_for(mine.handle.held_weights.remote(), 60, mine)
        found["checksums_beside_generation_s"] = _since(started)
        found["tensors"] = len(held.hashes[0])
        assert found["checksums_beside_generation_s"] < found["512_completions_s"], "control waits for generation"
        assert len(wait_for(work, 120, mine)) == 64
        server = _server_pid(url)
        ray.kill(mine.handle)
        started = time.perf_counter()
        while Path(f"/proc/{server}").exists():
            assert time.perf_counter() - started < 30, "the server outlives its actor"
            time.sleep(0.1)
        found["server_gone_s"] = _since(started)
        return found


def one_gpu() -> Found:
    """Engine and trainer on one card: sync over CUDA IPC, training, checkpoint, everything bit-equal."""
    return _stack([])


def slots() -> Found:
    """The same through memory that stays open on both sides, instead of slime's updater."""
    return _stack(["cluster.weight_path=slots"])


def data_parallel() -> Found:
    """Two cards: an engine and a rank on each, two data-parallel copies."""
    return _stack(["cluster.gpus_per_node=2", "rollout.num_engines=2"], sglang_flags=_quick())


def tensor_parallel() -> Found:
    """Two cards: an engine on each, one copy of the trainer over both, with sequence parallelism."""
    settings = ["cluster.gpus_per_node=2", "rollout.num_engines=2", "trainer.tensor_parallel=2"]
    return _stack(settings, sglang_flags=_quick())


def nccl() -> Found:
    """Two cards: engine on one, trainer on the other, weights broadcast through slime's updater."""
    return _stack(APART, engine_memory=ENGINE_MEMORY, sglang_flags=_quick())


def _stack(overrides: Sequence[str], **options: Any) -> Found:  # noqa: ANN401
    from benchmarks.gpu.first_contact import _check_logprobs

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, _cast(_config([*SMALL, *overrides]), **options) as cast:
        scratch, publish = Path(name), cast.roles.weight_sync.publish
        found: Found = {"start_s": _since(started), "first_sync_s": round(publish(0).seconds, 3)}
        _log(found)
        groups, first = _draw(cast, _haiku_requests(32, 0)), _held(cast)
        found |= _check_logprobs(groups[:16])
        stats = []
        for step in range(4):
            started = time.perf_counter()
            stats.append(_train(cast, _batch(groups, step)))
            found[f"train_{step}_s"] = _since(started)
        found |= {"gaps": [each.logprob_gap for each in stats], "grad_norm": stats[0].grad_norm,
                  "clip_fraction": stats[-1].clip_fraction, "losses": [each.loss for each in stats]}
        _log(found)
        assert stats[0].logprob_gap < GAP, stats[0]
        assert all(each.grad_norm > 0 for each in stats)
        report = publish(1)
        found |= {"sync_s": round(report.seconds, 4), "sync_bytes": report.num_bytes}
        found["tensors_changed"] = _require_changed(cast, first)
        _draw(cast, _haiku_requests(32, 1))
        started = time.perf_counter()
        cast.roles.trainer.save(scratch)
        found["save_s"] = _since(started)
        found["files"] = sorted(str(path.relative_to(scratch)) for path in scratch.rglob("*") if path.is_file())[:30]
        found["bit_equal_to_export"] = _require_equal(cast, _exported_hashes(scratch / "hf"))
        found["engines"] = len(cast.actors()) and _count_engines(cast)
        _log(found)
        saved = _held(cast)
        _train(cast, _batch(groups, 4))
        publish(2)
        _require_changed(cast, saved)
        cast.roles.trainer.load(scratch)
        publish(3)
        _require_equal(cast, _exported_hashes(scratch / "hf"))
        found["restored"] = True
        found["gap_after"] = _train(cast, _batch(_draw(cast, _haiku_requests(32, 3)), 4)).logprob_gap
        assert found["gap_after"] < GAP
        return found


def train() -> Found:
    """Thirty steps of the bundled model through `launch.local.run`: the structure reward's slope must be above 0."""
    from launch.local import run

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name) / "run"
        started = time.perf_counter()
        result = run(_config([*SMALL, "num_steps=30", "output.save_interval=15"]), output_dir=directory)
        assert result.finished
        rows = _metrics(directory)
        slope, low, high = _slope([row["reward/structure"] for row in rows])
        summary = json.loads((directory / "eval" / "summary.json").read_text())
        found = {
            "wall_s": _since(started), "slope": slope, "slope_low": low, "slope_high": high,
            "structure": [round(row["reward/structure"], 3) for row in rows],
            "gap_max": max(row["train/logprob_gap"] for row in rows),
            "seconds": {key: median(row[f"time/{key}_s"] for row in rows[3:]) for key in ("rollout", "train", "sync")},
            "summary": {key: summary[key] for key in ("base", "trained")},
        }
        _log(found)
        assert low > 0, "the reward must rise"
        assert found["gap_max"] < GAP
        return found


def recover() -> Found:
    """An engine is killed in the middle of a rollout; it is replaced, gets the current weights, and the run goes on."""
    from benchmarks.gpu.slime_kills import run_with_kills

    found = run_with_kills([], kill_after=3)  # no checkpoint is written after that step
    assert found["starts"] == 1, "the trainer must stay"
    return found


def recover_nccl() -> Found:
    """Two cards, weights by NCCL: an engine is killed in a rollout and replaced.

    slime then destroys a communicator whose peer is dead; `starts` says whether that returns (1), or whether the
    deadline ended it and the run started again from its checkpoint (2).
    """
    from benchmarks.gpu.slime_kills import run_with_kills

    found = run_with_kills(APART, kill_after=3)
    found["replaced_in_place"] = found["starts"] == 1
    assert found["starts"] in (1, 2)
    return found


def recover_update() -> Found:
    """The same for an engine killed in an update, while the lock is held: the trainer is left in a broadcast.

    The attempt ends, and the next one restores the newest checkpoint.
    """
    from benchmarks.gpu.slime_kills import run_with_kills

    found = run_with_kills(APART, kill_in_update=5)
    assert found["starts"] == 2
    return found


def speed_06() -> Found:
    """Random weights of Qwen3-0.6B's shape: seconds for each phase of a step."""
    return _speed("0.6B", ["trainer.micro_batch_tokens=8192"], engine_memory=0.3)


def speed_4() -> Found:
    """Random weights of Qwen3-4B's shape on one card, and the sync's GB/s: 110 GB, so an H200."""
    return _speed("4B", ["trainer.micro_batch_tokens=2048"], engine_memory=0.22)


def sync_4() -> Found:
    """Only the sync of Qwen3-4B's shape, through slime's updater; before its first step the trainer fits an H100."""
    return _sync_alone([])


def sync_4_slots() -> Found:
    """The same through memory that stays open on both sides."""
    return _sync_alone(["cluster.weight_path=slots"])


def speed_4_dp() -> Found:
    """`speed_4` on two cards that share the optimizer's state: fits two H100."""
    settings = ["cluster.gpus_per_node=2", "rollout.num_engines=2", "trainer.micro_batch_tokens=1024"]
    return _speed("4B", settings, engine_memory=0.22)


def sync_4_nccl() -> Found:
    """Two cards: only the sync of Qwen3-4B's shape, over NCCL."""
    return _sync_alone(APART)


def _sync_alone(overrides: Sequence[str]) -> Found:
    from benchmarks.gpu.slime_speed import sync_alone

    return sync_alone("4B", overrides)


def _speed(size: str, overrides: Sequence[str], **options: Any) -> Found:  # noqa: ANN401
    from benchmarks.gpu.slime_speed import speed

    return speed(size, overrides, **options)


@contextmanager
def _cast(config: Any, **options: Any) -> Iterator[Any]:  # noqa: ANN401
    """All actors of a run, without a coordinator."""
    from actors.reward_worker import RewardSpec
    from launch.placement import plan_gpus
    from launch.ray_runtime import local_ray
    from launch.start_slime import SlimeOptions, start_slime_actors
    from rlhaiku.haiku.reward import HaikuReward

    placement = plan_gpus(config)
    reward = RewardSpec(((HaikuReward(), 1.0),))
    with local_ray(placement.total_cpus, placement.num_gpus), \
            start_slime_actors(config, placement, reward, options=SlimeOptions(**options)) as cast:
        yield cast


def _config(overrides: Sequence[str]) -> Any:  # noqa: ANN401
    from rlhaiku.config import load_config

    return load_config("reference", overrides)


def _haiku_requests(count: int, weight_version: int, temperature: float = 1.0) -> list[Any]:
    from benchmarks.gpu.first_contact import _requests

    return _requests(count, weight_version, temperature)


def _draw(cast: Any, asked: Sequence[Any]) -> list[Any]:  # noqa: ANN401
    """Groups by the pool, in the order they were asked for."""
    cast.roles.rollouts.submit(asked)
    groups: list[Any] = []
    while len(groups) < len(asked):
        groups += cast.roles.events.next("groups").groups
    return sorted(groups, key=lambda group: group.key)


def _train(cast: Any, batch: Any) -> Any:  # noqa: ANN401
    cast.roles.trainer.submit(batch)
    return cast.roles.events.next("a train step").stats


def _batch(groups: Sequence[Any], step: int) -> Any:  # noqa: ANN401
    """A made-up reward, so that there is something to learn: low token ids are better."""
    from rlhaiku.batching import make_batch
    from rlhaiku.config import AlgorithmConfig
    from rlhaiku.types import Scored, ScoredGroup

    scored = [
        ScoredGroup(g, tuple(Scored(-sum(c.token_ids) / len(c.token_ids)) for c in g.completions)) for g in groups
    ]
    return make_batch(step, scored, AlgorithmConfig(), 1.0).batch


def _exported_hashes(directory: Path) -> dict[str, str]:
    """Checksums of an exported checkpoint, in the shape that an engine on one GPU holds it."""
    import torch
    from safetensors.torch import load_file

    from actors.engines.sglang_server import engine_tensors, tensor_hash

    named: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        named |= load_file(file, device="cuda")
    chunks = []
    for name in list(named):
        first, path = name.rsplit(".", 2)[-2], name.rsplit(".", 2)[0]
        joined = {"q_proj": ("q_proj", "k_proj", "v_proj"), "gate_proj": ("gate_proj", "up_proj")}.get(first)
        if joined:
            chunks.append([(f"{path}.{each}.weight", named[f"{path}.{each}.weight"]) for each in joined])
        elif first not in ("k_proj", "v_proj", "up_proj"):
            chunks.append([(name, named[name])])
    return {name: tensor_hash(tensor) for chunk in chunks for name, tensor in engine_tensors(chunk)}


def _require_equal(cast: Any, expected: dict[str, str]) -> int:  # noqa: ANN401
    """How many tensors of every engine are bit-equal to what is expected; all must be."""
    from actors.waiting import wait_for

    assert len(expected) > 5
    for engine in cast.roles.weight_sync._engines.actors:
        held = wait_for(engine.handle.held_weights.remote(), 120, engine).hashes[0]
        wrong = [name for name, value in expected.items() if held.get(name) != value]
        assert not wrong, f"{engine.name}: {len(wrong)} of {len(expected)} tensors differ, e.g. {wrong[:5]}"
    return len(expected)


def _held(cast: Any) -> list[dict[str, str]]:  # noqa: ANN401
    """Checksums of every engine's tensors."""
    from actors.waiting import wait_for

    engines = cast.roles.weight_sync._engines.actors
    return [wait_for(each.handle.held_weights.remote(), 120, each).hashes[0] for each in engines]


def _require_changed(cast: Any, before: list[dict[str, str]]) -> int:  # noqa: ANN401
    """How many tensors of the first engine are others than before; most must be, norms of bf16 may stay."""
    changed = [
        sum(old[name] != value for name, value in new.items()) for old, new in zip(before, _held(cast), strict=True)
    ]
    assert all(count > 5 for count in changed), f"an update must change the engines' tensors: {changed}"
    return changed[0]


def _quick() -> tuple[str, ...]:
    from launch.start_slime import WITHOUT_FLASHINFER

    return (*WITHOUT_FLASHINFER, *QUICK)


def _count_engines(cast: Any) -> int:  # noqa: ANN401
    return len(cast.roles.weight_sync._engines)


def _metrics(directory: Path) -> list[dict[str, float]]:
    file = directory / "metrics.jsonl"
    rows = []
    for line in file.read_text().splitlines() if file.exists() else []:
        with suppress(json.JSONDecodeError):  # the last one may be half written
            rows.append(json.loads(line))
    return rows


def _slope(values: Sequence[float]) -> tuple[float, float, float]:
    """Least squares per step, and its 95 % interval by resampling residuals."""
    import numpy as np

    steps, observed = np.arange(len(values)), np.asarray(values)
    fit = np.polyfit(steps, observed, 1)
    residuals, rng = observed - np.polyval(fit, steps), np.random.default_rng(0)
    slopes = [
        np.polyfit(steps, np.polyval(fit, steps) + rng.choice(residuals, len(values)), 1)[0] for _ in range(2000)
    ]
    low, high = np.quantile(slopes, [0.025, 0.975])
    return float(fit[0]), float(low), float(high)


def _server_pid(url: str) -> int:
    """Whoever listens on the server's port."""
    import psutil

    port = int(url.rsplit(":", 1)[1])
    return next(c.pid for c in psutil.net_connections("tcp") if c.laddr.port == port and c.status == "LISTEN" and c.pid)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)


def _log(found: Found) -> None:
    """What is known so far: a part that fails later has said this much."""
    print("so far", json.dumps(found, default=str), flush=True)


PARTS: dict[str, tuple[Callable[[], Found], float]] = {
    "imports": (imports, 150), "attention": (attention, 90), "engine": (engine, 480), "one_gpu": (one_gpu, 420),
    "train": (train, 480), "recover": (recover, 480), "speed_06": (speed_06, 420), "speed_4": (speed_4, 560),
    "data_parallel": (data_parallel, 420), "tensor_parallel": (tensor_parallel, 420), "nccl": (nccl, 480),
    "recover_nccl": (recover_nccl, 560), "recover_update": (recover_update, 480), "speed_4_dp": (speed_4_dp, 560),
    "sync_4_nccl": (sync_4_nccl, 480), "slots": (slots, 420), "sync_4": (sync_4, 420),
    "sync_4_slots": (sync_4_slots, 420),
}
DEFAULT = (
    "imports", "attention", "engine", "one_gpu", "slots", "train", "recover", "sync_4", "sync_4_slots", "speed_06",
    "speed_4",
)
"""On one GPU, the last on an H200; the others of PARTS need two."""


def run_part(name: str, output: Path) -> Found:
    """One part in a process of its own; prints how it went."""
    started = time.perf_counter()
    command = [sys.executable, "-u", "-m", "benchmarks.gpu.slime_first_contact", "--inside", name]
    log_file = output / f"{name}.log"
    with log_file.open("w+", errors="replace") as log:
        # A session of its own: what a part has started must not outlive it.
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        try:
            passed = process.wait(PARTS[name][1]) == 0
        except subprocess.TimeoutExpired:
            passed = False
            log.write(f"\nno end within {PARTS[name][1]} s\n")
        for each in _family(process.pid):  # none if it ended by itself
            with suppress(Exception):
                each.kill()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    lines = log_file.read_text(errors="replace").splitlines()
    found = next((line[len(FOUND):] for line in reversed(lines) if line.startswith(FOUND)), "{}")
    seconds = round(time.perf_counter() - started, 1)
    print(f"{'PASS' if passed else 'FAIL'} {name} {seconds} s {found}", flush=True)
    if not passed:
        print("\n".join("    " + line[:400] for line in lines[-TAIL:]), flush=True)
    with log_file.open("a") as log:
        log.write(_actor_logs(process.pid))
    return {"passed": passed, "seconds": seconds, "found": json.loads(found)}


def _family(pid: int) -> list[Any]:
    """A process and all below it: Ray's own processes and engines' servers leave the session they were started in."""
    import psutil

    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.Error:
        return []


def _actor_logs(driver: int) -> str:
    """The last of what every actor said, the servers of engines included, in the Ray sessions of a process."""
    said = []
    for file in sorted(Path("/tmp").glob(f"rlh-*/session_*_{driver}/logs/worker-*")):
        if file.is_file() and not file.is_symlink() and file.stat().st_size:
            text = file.read_text(errors="replace")
            said.append(f"\n==== {file.name}, {len(text)} characters\n{text[-LOG_CHARACTERS:]}")
    return "".join(said)


def main() -> None:
    """Runs the parts asked for, in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--output", type=Path, default=Path("slime_first_contact"))
    parser.add_argument("--inside", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name, value in (("HF_HUB_OFFLINE", "1"), ("RAY_AUTH_MODE", "disabled"), ("WANDB_MODE", "disabled"),
                        ("CUDA_DEVICE_MAX_CONNECTIONS", "1"), ("PYTHONPATH", ""),
                        ("RAY_memory_monitor_refresh_ms", "0")):  # checkpoints are written through much host memory
        os.environ.setdefault(name, value)
    if str(ROOT) not in os.environ["PYTHONPATH"].split(":"):  # actors and engine servers start elsewhere
        os.environ["PYTHONPATH"] = f"{ROOT}:{os.environ['PYTHONPATH']}".rstrip(":")
    if options.inside:
        try:
            print(FOUND + json.dumps(PARTS[options.inside][0](), default=str), flush=True)
        except BaseException:
            traceback.print_exc()
            sys.exit(1)
        return
    options.output.mkdir(parents=True, exist_ok=True)
    passed: dict[str, bool] = {}
    for name in options.parts or DEFAULT:
        result = run_part(name, options.output)
        passed[name] = result["passed"]
        (options.output / f"{name}.json").write_text(json.dumps(result, indent=2))
    print(json.dumps(passed))
    sys.exit(not all(passed.values()))


if __name__ == "__main__":
    main()
