"""What happens to groups, as values: roles report the first kind, the coordinator records all of them.

A ledger, a sample log or a test plugs in as an `EventSink` (see `rlhaiku.roles`) and sees every group's life:
claimed -> generated -> scored -> trained, or dropped with the reason.
"""

from dataclasses import dataclass

from rlhaiku.types import Group, GroupKey, GroupRequest, ScoredGroup, TrainStats


@dataclass(frozen=True, slots=True)
class GroupsClaimed:
    """The coordinator asked for these groups, to train them in `step`."""

    step: int
    requests: tuple[GroupRequest, ...]


@dataclass(frozen=True, slots=True)
class GroupsGenerated:
    """An engine finished these groups."""

    groups: tuple[Group, ...]


@dataclass(frozen=True, slots=True)
class GroupsScored:
    """A reward worker finished these groups."""

    groups: tuple[ScoredGroup, ...]


@dataclass(frozen=True, slots=True)
class GroupsDropped:
    """These groups reached their step and were not trained."""

    step: int
    reasons: dict[GroupKey, str]


@dataclass(frozen=True, slots=True)
class GroupsTrained:
    """The trainer took `stats.step` with exactly these groups."""

    keys: tuple[GroupKey, ...]
    stats: TrainStats


@dataclass(frozen=True, slots=True)
class StepTrained:
    """The trainer finished a step (reported by the trainer; recorded as `GroupsTrained`)."""

    stats: TrainStats


RoleEvent = GroupsGenerated | GroupsScored | StepTrained
"""What the event source hands to the coordinator."""

GroupEvent = GroupsClaimed | GroupsGenerated | GroupsScored | GroupsDropped | GroupsTrained
"""What the event sink is told."""
