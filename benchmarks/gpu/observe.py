"""When the actors of a run were at work, and when their cards were: seen from inside, without a change to them.

Work is written down by subclasses that take the actors' places before they start; what else there is to know they are
asked through a call that every Ray actor answers, see `benchmarks.gpu.inside`.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from actors.actor import Actor
from actors.waiting import wait_for_all
from benchmarks.coordinator_overhead import spanned
from benchmarks.gpu.timeline import Span, read_spans
from launch import start, start_slime

PHASES = {
    "rollout": ("generate",), "reward": ("rewards_now", "score"), "train": ("train_step",),
    "push": ("push_weights", "fill_slot", "take_slot", "send_weights", "pass_on"),
    "load": ("_load",),  # of a torch engine: what it has received becomes what it draws with
    "verify": ("sent_tensors", "held_weights", "receive_weights"),
}
"""Methods by what of a step they are; `push`, `verify` and `load` are the weight sync."""
LIMIT_S = 180.0


def observed(cls: type, directory: Path) -> type:
    """The class with every call of PHASES' methods that it has written down, a folder for each phase."""
    for phase, methods in PHASES.items():
        (directory / phase).mkdir(parents=True, exist_ok=True)
        cls = spanned(cls, [name for name in methods if hasattr(cls, name)], directory / phase)
    return cls


@contextmanager
def observing(directory: Path) -> Iterator[None]:
    """Within, all actors of a run start as observed ones."""
    def later(make: Callable[[], type]) -> Callable[[], type]:
        return lambda: observed(make(), directory)

    with ExitStack() as stack:
        for name in ("TorchEngine", "GpuTorchEngine", "TorchTrainer", "RewardWorker", "WeightRelay",
                     "DeviceWeightRelay"):
            stack.enter_context(patch.object(start, name, observed(getattr(start, name), directory)))
        stack.enter_context(patch.object(start_slime, "RewardWorker", start.RewardWorker))
        for name in ("engine_class", "trainer_class"):
            stack.enter_context(patch.object(start_slime, name, later(getattr(start_slime, name))))
        yield


def read_phases(directory: Path) -> dict[str, list[Span]]:
    """What was written down so far, by phase."""
    return {phase: [span for file in (directory / phase).glob("*.spans") for span in read_spans(file)]
            for phase in PHASES}


def ask(actors: list[Actor], question: Callable[..., Any], *arguments: object) -> list[Any]:
    """The answers of a function that is called with each actor's instance, in its process."""
    calls = [(actor.handle.__ray_call__.remote(question, *arguments), actor) for actor in actors]
    return wait_for_all(calls, LIMIT_S, f"for {question.__name__}")
