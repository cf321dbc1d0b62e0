"""The only place that waits for Ray: always with a deadline, always able to say who waited for whom.

An actor that does not answer by its deadline is killed and from then on counts as dead: a hang and a crash have one
treatment, and it is that of a crash.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from actors.actor import Actor
from rlhaiku.errors import ActorDied, ActorFailed, RlhaikuError, WaitTimeout
from rlhaiku.events import RoleEvent

BURIAL_S = 30.0
"""How long Ray may take to notice that a killed process is gone."""
SOON_S = 0.02
"""What comes within it is taken before anything else is done meanwhile."""
PROBE_S = 1.0
"""How often others are looked at while a group of actors is waited for."""


def wait_for(ref: Any, timeout_s: float, who: Actor | str, doing: str = "") -> Any:  # noqa: ANN401  (any result)
    """The value of a Ray reference, or of each in a list; `doing`: what was asked.

    After `timeout_s` seconds an Actor is killed and ActorDied raised; for others, WaitTimeout. Raises ActorDied also
    when the actor is gone, or is a successor that could not start; ActorFailed when it raised something that is not
    ours or could not start; our own errors pass through.
    """
    asked = f", asked {doing}," if doing else ""
    try:
        answer = ray.get(ref, timeout=timeout_s)
    except GetTimeoutError:
        said = f"{who}{asked} must answer within {timeout_s:g} s; it did not"
        if isinstance(who, Actor):
            report = f"{said}, and was killed. {who.history()} It was here:\n{who.stack()}"
            who.kill(report)
            raise ActorDied(report) from None
        raise WaitTimeout(f"{said}. See its log, or raise cluster.wait_timeout_s.") from None
    except RayTaskError as error:
        if isinstance(error.cause, RlhaikuError):
            raise error.cause from None
        if isinstance(error.cause, RayActorError):  # it called somebody itself, who is gone
            raise ActorDied(f"{who}{asked} lost somebody it needed: {error.cause}") from None
        raise ActorFailed(f"{who}{asked} raised:\n{error}") from None
    except RayActorError as error:
        if error.actor_init_failed and not (isinstance(who, Actor) and who.is_successor):
            raise ActorFailed(f"{who} could not start:\n{error}") from None
        because, history = (who.killed_because, f" {who.history()}") if isinstance(who, Actor) else ("", "")
        lines = str(error).strip().splitlines()
        cause = lines[-1] if error.actor_init_failed else lines[0]  # of a process that is gone, the rest is guesses
        raise ActorDied(because or f"{who}{asked} died: {cause}{history}") from None
    if isinstance(who, Actor):
        who.finished(doing)
    return answer


def wait_for_start(actor: Actor, timeout_s: float) -> None:
    """Returns when an actor is up, at once if it is known to be; raises what `wait_for` raises."""
    if actor.process() is None:
        wait_for(actor.handle.__ray_ready__.remote(), actor.patience_s(timeout_s), actor, "to start")


def wait_for_all(
    calls: Sequence[tuple[Any, Actor]], timeout_s: float, doing: str, watched: Sequence[Actor] = ()
) -> list[Any]:
    """The results of calls that only end together, such as a collective's, in their order.

    The first that fails ends the wait, and so does the death of one of `watched`, on whom the others depend: who waits
    for the dead never answers. Raises what `wait_for` raises; after `timeout_s` seconds whoever is late is killed.
    """
    deadline_s = time.monotonic() + timeout_s
    late = dict(calls)
    while late:
        left_s = deadline_s - time.monotonic()
        ready, _ = ray.wait(list(late), num_returns=1, timeout=max(0.0, min(PROBE_S, left_s)))
        for ref in ready:
            _settle_one(ref, late.pop(ref), doing, watched)
        if ready:
            continue
        for actor in watched:
            _require_alive(actor, doing)
        if left_s <= 0:
            others = ", ".join(actor.name for actor in list(late.values())[1:])
            first, actor = next(iter(late.items()))
            for each in list(late.values())[1:]:
                each.kill(f"{each} must answer within {timeout_s:g} s")
            wait_for(first, 0.0, actor, f"{doing} (late too: {others})" if others else doing)
            late.pop(first)
    return [wait_for(ref, timeout_s, actor, doing) for ref, actor in calls]


def _settle_one(ref: Any, actor: Actor, doing: str, watched: Sequence[Actor]) -> None:  # noqa: ANN401
    """Raises what a finished call raised, or the death that it came from: who is asked notices before we do."""
    try:
        wait_for(ref, PROBE_S, actor, doing)
    except ActorDied:
        raise
    except ActorFailed:
        time.sleep(PROBE_S)
        for each in watched:
            _require_alive(each, doing)
        raise


def _require_alive(actor: Actor, doing: str) -> None:
    """Raises ActorDied if its process is gone; one that only is busy is none of our business here."""
    try:
        ray.get(actor.handle.__ray_ready__.remote(), timeout=PROBE_S)
    except GetTimeoutError:
        return
    except RayActorError as error:
        reason = str(error).partition("\n")[0]
        raise ActorDied(actor.killed_because or f"{actor}, needed {doing}, died: {reason}") from None


@dataclass(frozen=True, slots=True)
class _Pending:
    actor: Actor
    doing: str
    then: Callable[[Any], RoleEvent | None]
    on_death: Callable[[ActorDied], None] | None


class _Pause:
    """Stands still the clocks of actors that wait for somebody else."""

    def __init__(
        self, asks: Callable[[], bool], actors: Callable[[], Sequence[Actor]], signs: Callable[[], int]
    ) -> None:
        self._asks, self._actors, self._signs = asks, actors, signs
        self._seen = 0
        self._began_s: float | None = None

    def hold_clocks(self, longest_s: float) -> None:
        """Takes their silence so far for a pause, if it is one, and has not lasted for `longest_s`."""
        if not self._asks():
            self._began_s = None
            return
        now, seen = time.monotonic(), self._signs()
        if self._began_s is None or seen != self._seen:  # what moves is another pause
            self._began_s, self._seen = now, seen
        if now - self._began_s < longest_s:
            for actor in self._actors():
                actor.last_sign_s = now

    def saw(self, actor: Actor) -> None:
        """Somebody finished something; if it is one of them, whatever they wait for is another pause."""
        if actor in self._actors():
            self._began_s = None


class RayEvents:
    """The coordinator's event source: every outstanding Ray call, and the event that its result becomes."""

    def __init__(self, timeout_s: float, longest_pause_s: float = 600.0) -> None:
        """`timeout_s`: longest silence of an actor that has work; `longest_pause_s`: what a pause adds at most."""
        self._timeout_s, self._longest_pause_s = timeout_s, longest_pause_s
        self._pending: dict[Any, _Pending] = {}
        self._delivered: deque[RoleEvent] = deque()
        self._pauses: list[_Pause] = []
        self._last = "nothing"
        self._last_s = time.monotonic()

    def expect(
        self,
        ref: Any,  # noqa: ANN401  (a Ray reference)
        actor: Actor,
        doing: str,
        then: Callable[[Any], RoleEvent | None],
        on_death: Callable[[ActorDied], None] | None = None,
    ) -> None:
        """Waits for one more call; `then` turns its result into an event, or none, and may start further calls.

        `on_death` is told when the actor died, and gives its work to another; without it the death ends the run.
        """
        if not any(pending.actor is actor for pending in self._pending.values()):
            actor.last_sign_s = time.monotonic()
        actor.doing = doing
        self._pending[ref] = _Pending(actor, doing, then, on_death)

    def deliver(self, event: RoleEvent) -> None:
        """Adds an outcome that no Ray call was needed for."""
        self._delivered.append(event)

    def pause_while(
        self, paused: Callable[[], bool], actors: Callable[[], Sequence[Actor]], signs: Callable[[], int] = lambda: 0
    ) -> None:
        """Stops the clocks of `actors()` while `paused` says so, e.g. while the judge they ask is away.

        For `longest_pause_s` at most since one of them last finished something, or `signs`, of what they do inside a
        call, last changed: then they too may be hanging.
        """
        self._pauses.append(_Pause(paused, actors, signs))

    def next(self, waiting_for: str, meanwhile: Callable[[], None] = lambda: None) -> RoleEvent:
        """The next result, as an event; where it is not there soon, `meanwhile` is done before waiting on."""
        while not self._delivered:
            self._advance(waiting_for, meanwhile)
        event = self._delivered.popleft()
        self._last, self._last_s = type(event).__name__, time.monotonic()
        return event

    def settle_while(self, busy: Callable[[], bool], waiting_for: str) -> None:
        """Takes results as they arrive until `busy` says no; their events wait for `next`."""
        while busy():
            self._advance(waiting_for)

    def _advance(self, waiting_for: str, meanwhile: Callable[[], None] = lambda: None) -> None:
        """Settles one call, or does something else and then lets some time pass."""
        if not self._pending:
            raise WaitTimeout(f"{waiting_for} must come from somebody; nobody has work. {self._last_event()}")
        ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=SOON_S)
        if not ready:
            meanwhile()
            ready, _ = ray.wait(list(self._pending), num_returns=1, timeout=self._patience_s())
        if ready:
            self._settle(ready[0])
        else:
            for pause in self._pauses:
                pause.hold_clocks(self._longest_pause_s)
            self._bury_the_silent(waiting_for)

    def _settle(self, ref: Any) -> None:  # noqa: ANN401
        pending = self._pending.pop(ref)
        pending.actor.last_sign_s = time.monotonic()
        for pause in self._pauses:
            pause.saw(pending.actor)
        try:
            value = wait_for(ref, self._timeout_s, pending.actor, f"for {pending.doing}")
        except ActorDied as death:
            if pending.on_death is None:
                raise
            pending.on_death(death)
        else:
            if event := pending.then(value):
                self._delivered.append(event)

    def _patience_s(self) -> float:
        """Seconds until somebody's silence has lasted too long."""
        longest = max(self._silence_s(pending.actor) for pending in self._pending.values())
        return max(min(1.0, self._timeout_s), self._timeout_s - longest)

    def _silence_s(self, actor: Actor) -> float:
        return time.monotonic() - actor.last_sign_s

    def _bury_the_silent(self, waiting_for: str) -> None:
        """Kills whoever has been silent for too long; Ray reports the deaths, and they go the way of all deaths."""
        for actor in {pending.actor for pending in self._pending.values()}:
            limit_s = actor.patience_s(self._timeout_s)
            silence_s = self._silence_s(actor)
            if silence_s < limit_s:
                continue
            report = (
                f"{waiting_for}: {actor}, busy with {actor.doing}, must give a sign within {limit_s:g} s; silent for "
                f"{silence_s:.0f} s. {actor.history()} {self._last_event()} Raise cluster.wait_timeout_s if it is only "
                "slow."
            )
            if actor.killed_because:
                raise WaitTimeout(f"{report} It was killed, and Ray has not noticed for {BURIAL_S:g} s.")
            actor.kill(f"{report} It was killed; its stack was:\n{actor.stack()}")
            actor.last_sign_s = time.monotonic() - self._timeout_s + BURIAL_S

    def _last_event(self) -> str:
        return f"Last event: {self._last}, {time.monotonic() - self._last_s:.0f} s ago."
