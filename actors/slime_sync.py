"""Megatron's weights to every SGLang engine, through slime's own updaters, and verified: knows both sides.

An update is collective: all trainer ranks take part, and each asks the registry who the engines are. slime's updaters
pause the engines first, which aborts whatever is in flight, so nothing may be. An engine that dies in the middle leaves
the ranks waiting for it and the lock taken: that is noticed, and the run starts again from its newest checkpoint.
"""

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.actor import Actor
from actors.crew import Crew
from actors.engines.sglang_engine import HeldWeights
from actors.waiting import wait_for, wait_for_all
from rlhaiku.errors import ActorDied, ActorFailed, WeightMismatch
from rlhaiku.types import SyncReport

NEVER = -1


@dataclass(frozen=True, slots=True)
class SentTensors:
    """The trainer's word on what it sent."""

    hashes: Mapping[str, str]
    """A checksum over every element of each tensor, by the name and in the shape it has in an engine on one GPU; of the
    same kind as in the engines' HeldWeights."""
    num_bytes: int


class SlimeSync:
    """The WeightSync of Megatron trainers and SGLang engines."""

    def __init__(self, ranks: Sequence[Actor], engines: Crew, registry: Actor, timeout_s: float) -> None:
        """`registry` knows the engines as they are now; `timeout_s`: longest wait for one update."""
        self._ranks, self._engines, self._registry, self._timeout_s = ranks, engines, registry, timeout_s
        self._registered = list(engines.actors)
        self._published = NEVER
        self._sent = SentTensors({}, 0)
        self.before_publish: Callable[[], None] = lambda: None
        """Returns once no request is in flight."""

    def publish(self, weight_version: int) -> SyncReport:
        """Returns when every engine holds `weight_version` and every element of it; raises WeightMismatch.

        Engines that died while they had nothing to do are replaced first. Raises ActorDied for a death during the
        update itself.
        """
        self.before_publish()
        return self._send(weight_version)

    def renew(self) -> None:
        """Gives the current weights to engines that were started since; called while no request is in flight."""
        self._register_successors()
        asked = [(engine.handle.weight_version.remote(), engine) for engine in self._engines.actors]
        held = wait_for_all(asked, self._timeout_s, "for its weight version", watched=self._engines.actors)
        if any(version != self._published for version in held):
            self._send(self._published)

    def _send(self, weight_version: int) -> SyncReport:
        started = time.perf_counter()
        has_new = self._register_successors()
        try:
            self._sent, held = self._deliver(weight_version)
        except ActorFailed as error:
            if has_new and not isinstance(error, ActorDied):  # slime may fail to leave what it shared with the dead
                raise ActorDied(f"the weights did not reach an engine that took a dead one's place: {error}") from error
            raise
        for engine, holds in zip(self._engines.actors, held, strict=True):
            if complaint := _complaint(self._sent, holds, weight_version):
                raise WeightMismatch(f"{engine.name} must hold the trainer's version {weight_version}; {complaint}")
        self._published = weight_version
        seconds = time.perf_counter() - started
        return SyncReport(weight_version, _crc(self._sent.hashes), self._sent.num_bytes, seconds)

    def _deliver(self, weight_version: int) -> tuple[SentTensors, list[HeldWeights]]:
        """Sends a version; returns what the trainer sent and what each engine holds then, which may be anything."""
        calls = [(rank.handle.push_weights.remote(weight_version), rank) for rank in self._ranks]
        self._wait(calls, f"to send weight version {weight_version}")
        asked = [(rank.handle.sent_tensors.remote(), rank) for rank in self._ranks]
        held = [(engine.handle.held_weights.remote(), engine) for engine in self._engines.actors]
        answers = self._wait([*asked, *held], "for checksums of its weights")
        return next(each for each in answers[: len(asked)] if each is not None), answers[len(asked) :]

    def _wait(self, calls: Sequence[tuple[Any, Actor]], doing: str) -> list[Any]:
        return wait_for_all(calls, self._timeout_s, doing, watched=self._engines.actors)

    def _register_successors(self) -> bool:
        """Whether there were any."""
        has_new = False
        for place in range(len(self._engines)):
            engine = self._alive(place)
            if engine is not self._registered[place]:
                call = self._registry.handle.replace_engine.remote(place, engine.handle)
                wait_for(call, self._timeout_s, self._registry, f"to register {engine.name}")
                self._registered[place], has_new = engine, True
        return has_new

    def _alive(self, place: int) -> Actor:
        """The engine at a place, once it is up; a dead one is replaced."""
        while True:
            engine = self._engines.actors[place]
            try:
                patience_s = engine.patience_s(self._timeout_s)
                wait_for(engine.handle.__ray_ready__.remote(), patience_s, engine, "to be up")
            except ActorDied as death:
                self._engines.replace(engine, death)
            else:
                return engine


class SlotSync(SlimeSync):
    """The same where each engine shares its card with a rank: through memory that both have open all the time.

    slime's updater makes, sends and opens handles for every update, and SGLang loads one bucket after another. Here a
    rank writes tensors as its engine holds them, which copies them all at once; what is sent is a version number.
    """

    def __init__(
        self, ranks: Sequence[Actor], engines: Crew, registry: Actor, timeout_s: float, of_ranks: Sequence[Path],
        of_engines: Sequence[Path],
    ) -> None:  # fmt: skip
        """`of_ranks`, `of_engines`: the file that says how to open their card's memory, the same for both."""
        super().__init__(ranks, engines, registry, timeout_s)
        self._of_ranks, self._of_engines = of_ranks, of_engines

    def _deliver(self, weight_version: int) -> tuple[SentTensors, list[HeldWeights]]:
        sent = self._fill(weight_version)
        return sent, self._take(weight_version)

    def _fill(self, weight_version: int) -> SentTensors:
        files = zip(self._ranks, self._of_ranks, strict=True)
        calls = [(rank.handle.fill_slot.remote(file), rank) for rank, file in files]
        sent: SentTensors = self._wait(calls, f"to write weight version {weight_version}")[0]
        return sent

    def _take(self, weight_version: int) -> list[HeldWeights]:
        files = zip(self._engines.actors, self._of_engines, strict=True)
        calls = [(engine.handle.take_slot.remote(weight_version, file), engine) for engine, file in files]
        return self._wait(calls, f"to load weight version {weight_version}")


def _complaint(sent: SentTensors, held: HeldWeights, weight_version: int) -> str:
    """What is wrong with an engine's weights; empty if nothing is. On several GPUs only what is not cut is compared."""
    if held.weight_version != weight_version:
        return f"it reports {held.weight_version}. Was it paused or restarted meanwhile?"
    expected = sent.hashes
    if len(held.hashes) > 1:
        expected = {name: value for name, value in expected.items() if "norm" in name}
    for of_gpu in held.hashes:
        lacking = [name for name in expected if name not in of_gpu]
        wrong = [name for name, value in expected.items() if of_gpu.get(name, value) != value]
        if lacking or wrong:
            return f"of {len(expected)} tensors {len(lacking)} are missing and {len(wrong)} differ, e.g. " + \
                   f"{(lacking + wrong)[0]}. Is hf-checkpoint the same model on both sides?"
    return ""


def _crc(hashes: Mapping[str, str]) -> int:
    return zlib.crc32("".join(f"{name}={value};" for name, value in sorted(hashes.items())).encode())
