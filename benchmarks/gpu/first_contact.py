"""Everything that only a GPU can show, in one command on a machine that has one: what works, and what it says if not.

    python -m benchmarks.gpu.first_contact [PART ...]      parts: see PARTS, at the end

Each part is a process of its own with a deadline; a failure ends its part alone. Prints `PASS` or `FAIL` with
its findings, and at the end one JSON line with who passed.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from threading import Thread
from typing import Any

ROOT = Path(__file__).parents[2]
FOUND = "FOUND "
"""Starts the line on which a part says what it found."""
TAIL = 40
"""Lines of a failed part that are shown."""
GAP = 0.02
"""Largest mean |engine logprob - trainer logprob| in bf16."""
Found = dict[str, Any]


def imports() -> Found:
    """Packages, the card, and that the heavy ones load."""
    import datasets
    import ray
    import torch
    import vllm

    assert torch.cuda.is_available()
    names = ("torch", "vllm", "ray", "transformers", "datasets", "numpy", "pydantic")
    return {
        "gpu": torch.cuda.get_device_name(), "free_gb": round(torch.cuda.mem_get_info()[0] / 1e9, 1),
        "loaded": [module.__name__ for module in (torch, vllm, ray, datasets)],
        "packages": {name: version(name) for name in names},
    }


def trainer() -> Found:
    """The tests marked `gpu`."""
    return _tests("-m", "gpu", "tests/actors")


def _tests(*arguments: str) -> Found:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-W", "default", *arguments]
    done = subprocess.run(command, cwd=ROOT, timeout=280, check=False, capture_output=True, text=True)
    print(done.stdout[-6000:], done.stderr[-1000:])
    said = done.stdout.strip().splitlines()[-1]
    assert done.returncode == 0
    assert "passed" in said, said
    return {"pytest": said}


def torch_engine() -> Found:
    """The torch engine and a trainer in two processes: weights, logprobs, and bits that repeat."""
    from actors.engines.gpu_torch_engine import GpuTorchEngine
    from actors.engines.torch_engine import EngineSpec
    from launch.checks import resolve_model

    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        with _Trainer(scratch) as peer:
            sent = peer.ask("send_weights", 0)
            spec = EngineSpec(resolve_model("bundled"), scratch / "weights", 2, 1, 16, 0, True)
            mine = GpuTorchEngine(spec)
            assert mine.receive_weights(0) == sent.checksum
            found, groups = _exercise(mine, peer)
            assert found["same_seed_same_tokens"] == 1
            sent = peer.ask("send_weights", 1)
            assert mine.receive_weights(1) == sent.checksum
            assert _share_equal(groups, mine.generate(_requests(16, 1))) < 1
            found["step_of_16_groups_s"] = _seconds(lambda: mine.generate(_requests(16, 1)))
            return found


def engine() -> Found:
    """vLLM and a trainer in two processes: same weights to the bit, same logprobs, control beside generation."""
    import torch

    from actors.engines.vllm_engine import VllmEngine, checkpoint_views

    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        with _Trainer(scratch) as peer:
            sent = peer.ask("send_weights", 0)
            vllm = VllmEngine(_engine_spec(scratch))
            assert vllm.receive_weights(0) == sent.checksum
            slots = vllm._weights._slots
            assert slots is not None
            own = checkpoint_views(vllm._model, slots.shapes)
            unequal = [name for name, view in slots.views(0).items() if not torch.equal(view, own[name])]
            assert not unequal, f"vLLM loaded the checkpoint differently from what the trainer sent: {unequal[:5]}"
            found, _ = _exercise(vllm, peer)
            large = vllm.generate(_requests(100, 0))  # the largest graph
            found |= {f"{name}_800_rows": value for name, value in _check_logprobs(large[::8]).items()}
            sent = peer.ask("send_weights", 1)
            found["control_s"] = _receive_beside_generation(vllm, sent)
            found["load_and_one_group_s"] = _seconds(lambda: vllm.generate(_requests(1, 1)))
            found["one_group_s"] = _seconds(lambda: vllm.generate(_requests(1, 1)))
            assert vllm._weights.loaded == 1
            peer.ask("save", scratch)
            fresh = _fresh_weights(scratch / "hf", scratch)
            mine = {name: _sha(p.data) for name, p in vllm._model.named_parameters()}
            assert mine == fresh, [name for name in mine if mine[name] != fresh.get(name)][:5]
            found["bit_equal_to_fresh_engine"] = len(mine)
            return found


def _exercise(mine: Any, peer: "_Trainer") -> tuple[Found, list[Any]]:  # noqa: ANN401
    """Draws, compares logprobs with plain forwards, and trains three steps on what was drawn."""
    groups = mine.generate(_requests(16, 0))
    found = _check_logprobs(groups)
    found["same_seed_same_tokens"] = _share_equal(groups, mine.generate(_requests(16, 0)))
    greedy = mine.generate(_requests(2, 0, temperature=0.0))
    assert all(c == group.completions[0] for group in greedy for c in group.completions)
    stats = [peer.ask("train_step", _batch(groups, step)) for step in range(3)]
    found["trainer_gap"] = stats[0].logprob_gap
    assert stats[0].logprob_gap < GAP, stats[0]
    return found, groups


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return round(time.perf_counter() - started, 4)


def sleep() -> Found:
    """Memory given back and taken again; the weights come from the trainer's buffer."""
    import torch

    from actors.engines.vllm_engine import VllmEngine

    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        with _Trainer(scratch) as peer:
            peer.ask("send_weights", 0)
            vllm = VllmEngine(_engine_spec(scratch, may_sleep=True, enforce_eager=True))
            vllm.receive_weights(0)
            before = vllm.generate(_requests(4, 0))
            awake = torch.cuda.mem_get_info()[0]
            vllm.sleep()
            asleep = torch.cuda.mem_get_info()[0]
            assert asleep > awake
            after = vllm.generate(_requests(4, 0))
            return {"freed_mb": (asleep - awake) >> 20, "same_seed_same_tokens": _share_equal(before, after)}


def train() -> Found:
    """Ten steps of the one-gpu preset with the bundled model and vLLM, through the command."""
    return _train("vllm")


def train_torch() -> Found:
    """The same with the torch engine."""
    return _train("torch")


def several() -> Found:
    """The tests of several ranks and relays; what needs two GPUs is left out where there is one."""
    return _tests("-rs", "tests/actors/test_several_gpus.py")


TWO_GPUS = ("--set", "cluster.gpus_per_node=2")
TWO_ENGINES = (*TWO_GPUS, "--set", "rollout.num_engines=2", "--set", "rollout.tile_groups=16")


def train_split() -> Found:
    """Engine on one card and trainer on the other: weights cross by NCCL."""
    return _train("vllm", *TWO_GPUS, "--set", "cluster.colocate=false")


def train_split_torch() -> Found:
    """The same with the torch engine."""
    return _train("torch", *TWO_GPUS, "--set", "cluster.colocate=false")


def train_ranks() -> Found:
    """A trainer rank (FSDP2) and an engine on each of two cards."""
    return _train("vllm", *TWO_ENGINES)


def train_ranks_torch() -> Found:
    """The same with torch engines, while actors are killed at random moments."""
    return _train("torch", *TWO_ENGINES, "--chaos", "1")


def recover() -> Found:
    """The same on one card."""
    return _train("torch", "--chaos", "1")


def _train(engine: str, *more: str) -> Found:
    with tempfile.TemporaryDirectory() as name:
        return _train_in(Path(name) / "run", "--set", f"rollout.engine={engine}", *more)


def _train_in(directory: Path, *more: str) -> Found:
    settings = [
        "model.path=bundled", "num_steps=10", "rollout.max_tokens=48", "evaluation.max_tokens=48", "trainer.lr=3e-4",
        "evaluation.interval=5", "evaluation.num_prompts=32", "output.save_interval=5", "cluster.wait_timeout_s=200",
    ]
    command = [sys.executable, "-c", "from launch.cli import main; main()", "train", "--preset", "one-gpu",
               "--output-dir", str(directory), *more, *(part for s in settings for part in ("--set", s))]
    done = subprocess.run(command, cwd=ROOT, timeout=460, check=False, capture_output=True, text=True)
    print(done.stdout[-5000:], done.stderr[-5000:])
    if done.returncode:
        print(_actor_logs())
    assert done.returncode == 0
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    gaps = [row["train/logprob_gap"] for row in rows]
    assert len(rows) == 10
    assert max(gaps) < GAP, gaps
    shown = ("time/rollout_s", "time/train_s", "time/sync_s", "reward/mean", "train/logprob_gap", "train/grad_norm")
    return {"rows": [{key: round(row[key], 5) for key in shown} for row in rows],
            "summary": json.loads((directory / "eval" / "summary.json").read_text())}


class _Trainer:
    """A TorchTrainer in a process of its own: CUDA IPC connects processes, never a process with itself."""

    def __init__(self, scratch: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve_trainer, args=(theirs, scratch), daemon=True)

    def __enter__(self) -> "_Trainer":
        self._process.start()
        return self

    def ask(self, method: str, *arguments: object) -> Any:  # noqa: ANN401
        """Calls a method there."""
        self._pipe.send((method, arguments))
        assert self._pipe.poll(120), f"{method}: no answer"
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.join(30)


def _serve_trainer(pipe: Any, scratch: Path) -> None:  # noqa: ANN401
    from actors.trainers.torch_trainer import TorchTrainer, TrainerSpec
    from launch.checks import resolve_model
    from rlhaiku.config import AlgorithmConfig, load_config

    config = load_config("one-gpu", ["trainer.lr=3e-4"]).trainer
    spec = TrainerSpec(resolve_model("bundled"), scratch / "weights", 2, 10, config, AlgorithmConfig(), "cuda")
    mine = TorchTrainer(spec)
    while True:
        method, arguments = pipe.recv()
        try:
            pipe.send(getattr(mine, method)(*arguments))
        except Exception as error:  # told to whoever asked
            pipe.send(error)


def _engine_spec(scratch: Path, *, may_sleep: bool = False, **options: object) -> Any:  # noqa: ANN401
    from actors.engines.vllm_engine import VllmSpec
    from launch.checks import resolve_model

    return VllmSpec(resolve_model("bundled"), scratch / "weights", 2, seed=0, max_sequences=1024, max_tokens=48,
                    may_sleep=may_sleep, options=tuple(options.items()))


def _requests(count: int, weight_version: int, temperature: float = 1.0) -> list[Any]:
    from launch.local import load_prompts
    from rlhaiku.config import load_config
    from rlhaiku.types import GroupKey, GroupRequest, Sampling

    prompts, _ = load_prompts(load_config("laptop"))
    return [
        GroupRequest(GroupKey(claim, 0, prompt.prompt_id), prompt, 8, Sampling(temperature, 48), weight_version)
        for claim, prompt in enumerate(prompts[:count])
    ]


def _check_logprobs(groups: Sequence[Any]) -> Found:
    """Against plain forwards of `transformers`, in bf16 as the engine and in fp32 as the truth."""
    import torch
    from transformers import AutoModelForCausalLM

    from launch.checks import resolve_model

    gaps: dict[str, list[float]] = {"bf16": [], "fp32": []}
    for name in gaps:
        dtype = torch.bfloat16 if name == "bf16" else torch.float32
        model = AutoModelForCausalLM.from_pretrained(resolve_model("bundled"), dtype=dtype).cuda().eval()
        for completion, prompt in ((c, group.prompt) for group in groups for c in group.completions):
            assert len(completion.token_ids) == len(completion.logprobs)
            assert (completion.finish_reason == "stop") == (completion.token_ids[-1] == 2)
            assert 2 not in completion.token_ids[:-1]
            token_ids = torch.tensor([[*prompt.token_ids, *completion.token_ids]]).cuda()
            with torch.no_grad():
                logprobs = model(input_ids=token_ids).logits[0, :-1].float().log_softmax(-1)
            chosen = logprobs.gather(-1, token_ids[0, 1:, None])[len(prompt.token_ids) - 1 :, 0].tolist()
            gaps[name] += [abs(a - b) for a, b in zip(chosen, completion.logprobs, strict=True)]
    means = {f"gap_to_{name}": sum(each) / len(each) for name, each in gaps.items()}
    assert max(means.values()) < GAP, means
    texts = [group.completions[0].text for group in groups[:2]]
    return means | {"tokens": len(gaps["fp32"]), "texts": texts}


def _share_equal(some: Sequence[Any], others: Sequence[Any]) -> float:
    pairs = [(a.token_ids, b.token_ids) for x, y in zip(some, others, strict=True)
             for a, b in zip(x.completions, y.completions, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


def _batch(groups: Sequence[Any], step: int) -> Any:  # noqa: ANN401
    """Short poems are better, so that there is something to learn."""
    from rlhaiku.batching import make_batch
    from rlhaiku.config import AlgorithmConfig
    from rlhaiku.types import Scored, ScoredGroup

    scored = [ScoredGroup(g, tuple(Scored(-len(c.token_ids) / 48) for c in g.completions)) for g in groups]
    return make_batch(step, scored, AlgorithmConfig(), 1.0).batch


def _receive_beside_generation(vllm: Any, sent: Any) -> float:  # noqa: ANN401
    """Seconds that a control call takes while the engine generates."""
    work = Thread(target=vllm.generate, args=(_requests(32, 0),))
    work.start()
    time.sleep(0.02)
    started = time.perf_counter()
    assert vllm.receive_weights(sent.weight_version) == sent.checksum
    took = time.perf_counter() - started
    work.join(60)
    return round(took, 4)


def _fresh_weights(model: Path, scratch: Path) -> dict[str, str]:
    """Hashes of a fresh engine's weights, loaded by vLLM itself from an exported checkpoint, elsewhere."""
    output = scratch / "fresh.json"
    command = [sys.executable, "-m", "benchmarks.gpu.first_contact", "--dump", str(model), str(output)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=200, capture_output=True)
    loaded: dict[str, str] = json.loads(output.read_text())
    return loaded


def dump(model: str, output: str) -> None:
    """The other side of `_fresh_weights`."""
    from actors.engines.vllm_engine import VllmEngine, VllmSpec

    vllm = VllmEngine(VllmSpec(model, Path("unused"), 2, 0, 16, 48, options=(("enforce_eager", True),)))
    Path(output).write_text(json.dumps({name: _sha(p.data) for name, p in vllm._model.named_parameters()}))


def _sha(tensor: Any) -> str:  # noqa: ANN401
    import torch

    return hashlib.sha256(tensor.contiguous().view(torch.uint8).cpu().numpy().tobytes()).hexdigest()


def _actor_logs() -> str:
    """The last lines of the newest Ray session's actor logs."""
    files = sorted(Path("/tmp").glob("rlh-*/session_latest/logs/worker-*.err"), key=lambda path: path.stat().st_mtime)
    return "\n".join(f"== {path.name}\n{path.read_text(errors='replace')[-2500:]}" for path in files[-5:])


PARTS: dict[str, tuple[Callable[[], Found], float]] = {
    "imports": (imports, 120), "trainer": (trainer, 300), "torch_engine": (torch_engine, 180),
    "train_torch": (train_torch, 300), "engine": (engine, 420), "train": (train, 480), "sleep": (sleep, 240),
    "recover": (recover, 480), "several": (several, 300), "train_split_torch": (train_split_torch, 300),
    "train_ranks_torch": (train_ranks_torch, 480), "train_split": (train_split, 480), "train_ranks": (train_ranks, 480),
}
DEFAULT = ("imports", "trainer", "torch_engine", "train_torch", "engine", "train")


def run_part(name: str) -> bool:
    """One part in a process of its own; prints how it went."""
    started = time.perf_counter()
    command = [sys.executable, "-u", "-m", "benchmarks.gpu.first_contact", "--inside", name]
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        # A session of its own: what a part has started must not outlive it.
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
        try:
            passed = process.wait(PARTS[name][1]) == 0
        except subprocess.TimeoutExpired:
            passed = False
            log.write(f"no end within {PARTS[name][1]} s\n")
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        log.seek(0)
        output = log.read()
    lines = output.splitlines()
    found = next((line for line in reversed(lines) if line.startswith(FOUND)), "")
    print(f"{'PASS' if passed else 'FAIL'} {name} {time.perf_counter() - started:.0f} s {found}", flush=True)
    if not passed:
        print("\n".join("    " + line[:400] for line in lines[-TAIL:]), flush=True)
    return passed


def main() -> None:
    """Runs the parts asked for, in order."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--inside", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--dump", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")  # some machines' memory grows only as it is used
    if options.dump:
        dump(*options.dump)
    elif options.inside:
        print(FOUND + json.dumps(PARTS[options.inside][0]()), flush=True)
    else:
        results = {name: run_part(name) for name in options.parts or DEFAULT}
        print(json.dumps(results))
        sys.exit(not all(results.values()))


if __name__ == "__main__":
    main()
