"""Every role of `rlhaiku.roles`, in memory: a coordinator runs in milliseconds, without Ray or torch."""

from array import array
from collections import deque
from pathlib import Path

from rlhaiku.errors import WaitTimeout
from rlhaiku.events import GroupsGenerated, GroupsScored, StepTrained
from rlhaiku.types import Completion, Group, Scored, ScoredGroup, SyncReport, TrainStats


class FakeEvents:
    """A queue that fails at once when nobody owes an event. `reverse` delivers the newest first.

    Nothing is there before something else could be done `meanwhile`; with `at_once` everything is.
    """

    def __init__(self, reverse=False):
        self.queue, self.reverse, self.at_once = deque(), reverse, False

    def next(self, waiting_for, meanwhile=lambda: None):
        if not self.at_once:
            meanwhile()
        if not self.queue:
            raise WaitTimeout(f"{waiting_for}: nothing outstanding")
        return self.queue.pop() if self.reverse else self.queue.popleft()

    def deliver(self, event):
        self.queue.append(event)


class FakeRollouts:
    """Answers each request with completions whose text is their index, or what `say(request, index)` says."""

    def __init__(self, events):
        self.events, self.requests = events, []
        self.say = lambda request, index: str(index)

    def submit(self, requests):
        self.requests += requests
        for request in requests:
            completions = tuple(
                Completion(
                    array("i", [5, 6 + i]), array("d", [-1.0, -2.0]), self.say(request, i), "stop",
                    request.weight_version,
                )
                for i in range(request.group_size)
            )
            self.events.queue.append(GroupsGenerated((Group(request.key, request.prompt, completions),)))


class FakeRewards:
    """The reward of a completion is its index, unless `reward(group, index)` says otherwise."""

    def __init__(self, events, reward=lambda group, index: Scored(float(index))):
        self.events, self.reward = events, reward

    def submit(self, groups):
        scored = tuple(
            ScoredGroup(g, tuple(self.reward(g, i) for i in range(len(g.completions)))) for g in groups
        )
        self.events.queue.append(GroupsScored(scored))

    def stats(self):
        return {}


class FakeTrainer:
    """Remembers its batches; its weights are the number of batches."""

    def __init__(self, events):
        self.events, self.batches, self.saved = events, [], []

    def submit(self, batch):
        self.batches.append(batch)
        stats = TrainStats(batch.step, 0.0, 1.0, 1e-4, 0.0, 0.0, 0.0, batch.num_loss_tokens, 0)
        self.events.queue.append(StepTrained(stats))

    def save(self, directory: Path):
        self.saved.append(directory)
        (directory / "trainer.txt").write_text(str(len(self.batches)))

    def load(self, directory: Path):
        self.batches = [None] * int((directory / "trainer.txt").read_text())


class FakeSync:
    """Remembers the versions it published."""

    def __init__(self):
        self.versions = []

    def publish(self, weight_version):
        self.versions.append(weight_version)
        return SyncReport(weight_version, 0, 0, 0.0)


class FakeReporter:
    """Remembers what it was told."""

    def __init__(self):
        self.steps, self.evaluations = [], []

    def step(self, report):
        self.steps.append(report)

    def evaluation(self, state, groups):
        self.evaluations.append((state, groups))


class FakeSink:
    """Remembers every event."""

    def __init__(self):
        self.events = []

    def record(self, event):
        self.events.append(event)
