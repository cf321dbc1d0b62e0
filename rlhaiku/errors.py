"""Everything rlhaiku raises on purpose.

    RlhaikuError
    ├── BadInput            what the user gave cannot work; exit status 2
    └── RunFailed           the run cannot go on; exit status 1
        ├── WaitTimeout     an actor, a socket or a collective did not answer by its deadline
        ├── ActorFailed     an actor raised something that is not ours
        │   └── ActorDied   an actor's process is gone
        ├── CrashLoop       actors die in one place again and again
        ├── OutputFailed    the run directory does not take what the run writes
        ├── WeightMismatch  an engine does not hold the weights the trainer sent
        └── BatchEmpty      no group of a step could be trained

To add one: subclass the nearest category, pass every argument to `super().__init__` (errors cross processes, so
they must survive pickling), say the rule, the value and the remedy in the message.
"""


class RlhaikuError(Exception):
    """Root of everything rlhaiku raises on purpose."""


class BadInput(RlhaikuError):
    """What the user gave cannot work: the rule, the value that broke it, and what to do."""

    def __init__(self, rule: str, value: object, remedy: str) -> None:
        super().__init__(rule, value, remedy)
        self.rule, self.value, self.remedy = rule, value, remedy

    def __str__(self) -> str:
        return f"{self.rule}; got {self.value!r}. {self.remedy}"


class RunFailed(RlhaikuError):
    """The run cannot go on; its last checkpoint is intact."""


class WaitTimeout(RunFailed):
    """Somebody did not answer by the deadline; names who waited for whom."""


class ActorFailed(RunFailed):
    """An actor raised something that is not ours; names the actor and the cause."""


class ActorDied(ActorFailed):
    """An actor's process is gone; its work can be given to another."""


class CrashLoop(RunFailed):
    """Actors die in one place again and again: what killed these will kill the next one too."""


class OutputFailed(RunFailed):
    """The run directory does not take what the run writes: the disk is full, read-only or gone."""


class WeightMismatch(RunFailed):
    """An engine reports another version or checksum than the trainer sent."""


class BatchEmpty(RunFailed):
    """Every group of a step was dropped, so there is nothing to learn from."""
