"""How long a card has nothing to do in a step of a run: the part of steady steps without a kernel of any process. And
what the coordinator and the ledger cost in the steps before these.

    python -m benchmarks.gpu.idle [--preset one-gpu] [--set KEY=VALUE ...] [--smoke] [--output FILE]

Engine and trainer record their own kernels (torch's profiler); the union of all of them, on the machine's clock, is
when the card was busy. Steps before the recorded ones run without a profiler: they say what it costs, and their
overhead is that of `benchmarks.coordinator_overhead`.
"""

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import ray

from benchmarks.coordinator_overhead import ENGINES, add_overhead, steps_of, watch
from benchmarks.gpu.timeline import ON_DEVICE, Span, idle_share, read_trace, union_s
from benchmarks.measure import begin, parser
from launch import start
from launch.local import run
from rlhaiku.config import RunConfig, load_config

GOAL = 0.20
WARM, PLAIN, RECORDED = 3, 12, 6
"""Steps: not counted, timed as they are, and with the profiler (of which the first and last are cut)."""


def traced(cls: type, name: str, step_of: Callable[[Any], int], directory: Path, steps: tuple[int, int]) -> type:
    """The class with a profiler over its process, from the first call that belongs to `steps[0]` to that of `steps[1]`.
    """
    own = getattr(cls, name)

    def method(self: Any, argument: Any) -> Any:  # noqa: ANN401
        from torch.profiler import ProfilerActivity, profile

        step, profiler = step_of(argument), getattr(self, "_profiler", None)
        if step >= steps[1] and profiler is not None:
            self._profiler = None
            profiler.stop()
            profiler.export_chrome_trace(str(directory / f"{cls.__name__}-{os.getpid()}.trace"))
        elif steps[0] <= step < steps[1] and profiler is None:
            import torch

            on_card = torch.cuda.is_available()
            self._profiler = profile(activities=[ProfilerActivity.CUDA if on_card else ProfilerActivity.CPU])
            self._profiler.start()
        return own(self, argument)

    return type(cls.__name__, (cls,), {name: method})


def record(config: RunConfig, directory: Path) -> tuple[list[Span], dict[str, list[Span]]]:
    """The steps of a run, and what kept the card busy by process, in the last steps."""
    steps = (WARM + PLAIN, WARM + PLAIN + RECORDED - 1)
    watch(directory)
    for engine in ENGINES:
        watched = getattr(start, engine.__name__)
        made = traced(watched, "generate", lambda requests: requests[0].weight_version, directory, steps)
        setattr(start, engine.__name__, made)
    start.TorchTrainer = traced(  # type: ignore[misc]
        start.TorchTrainer, "train_step", lambda batch: batch.step, directory, steps,
    )
    run(config, output_dir=directory / "run")
    categories = ON_DEVICE if config.cluster.gpus_per_node else ("cpu_op",)
    traces = {path.stem: read_trace(path, categories) for path in directory.glob("*.trace")}
    if len(traces) < 2 or not all(traces.values()):
        sys.exit(f"engine and trainer must both have recorded something; got {[*map(len, traces.values())]} events")
    return steps_of(directory), traces


def main() -> None:
    """Runs a preset for some steps and prints how idle the card was."""
    made = parser(__doc__)
    made.add_argument("--preset", default="one-gpu")
    made.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    options = made.parse_args()
    results = begin(options)
    steps = WARM + PLAIN + RECORDED
    config = load_config(options.preset, [
        f"num_steps={steps}", f"evaluation.interval={steps}", f"output.save_interval={steps}",
        "evaluation.num_prompts=2", *options.overrides,
    ])
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with tempfile.TemporaryDirectory() as name:
        windows, traces = record(config, Path(name))
        plain, recorded = windows[WARM : WARM + PLAIN], windows[WARM + PLAIN + 1 : steps - 1]
        what, said = f"{options.preset} preset, {config.rollout.engine} engine", " ".join(options.overrides)
        add_overhead(results, Path(name), plain, what, said)
    everything = [span for spans in traces.values() for span in spans]
    shares = [idle_share(everything, [window]) for window in recorded]
    share = idle_share(everything, recorded)
    step_s = [median(ended - began for began, ended in some) for some in (plain, recorded)]
    busy = {name: sum(union_s(spans, window) for window in recorded) / len(recorded) for name, spans in traces.items()}
    name = f"card idle, {what}"
    print(f"{name}: {share:.1%} of a step (goal {GOAL:.0%}: {'met' if share <= GOAL else 'NOT met'}); a step takes "
          f"{step_s[0]:.3f} s, {step_s[1]:.3f} s with the profiler; busy seconds of a step: "
          f"{ {who: round(seconds, 3) for who, seconds in busy.items()} }", flush=True)
    results.add({
        "name": name, "kind": "share", "ratio": share, "low": min(shares), "high": max(shares), "goal": GOAL,
        "unit": "s", "order": "one side",
        "samples": {"share": shares, "step_s": step_s, **{f"busy_s {who}": [each] for who, each in busy.items()}},
        "note": f"share of all recorded steps, least and most of one; step_s: without and with the profiler; {said}",
    })  # fmt: skip


if __name__ == "__main__":
    main()
