"""A run of fakes that dies where it is told to: started once, it forks a real process for every attempt.

    python -m tests.launch.kill_points          reads one JSON request a line, answers each with the exit status

Roles are in memory, but their outcome depends on everything that must not be lost: completions on the weights they were
drawn with, weights on every batch trained so far. Ledger, checkpoints, metrics and the code that puts them together are
the real ones.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
from array import array
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

from actors.reward_worker import RewardSpec
from launch.attempts import Attempts, open_ledger
from launch.inputs import Inputs
from launch.start import Cast
from rlhaiku import metrics
from rlhaiku.checkpoints import CheckpointStore
from rlhaiku.config import config_from_dict
from rlhaiku.coordinator import Surroundings
from rlhaiku.errors import ActorDied
from rlhaiku.events import GroupsGenerated, GroupsScored
from rlhaiku.prompts import PromptOrder
from rlhaiku.roles import Roles
from rlhaiku.types import Completion, Group, Prompt, Scored, ScoredGroup, Unscored
from tests.fakes import FakeEvents, FakeSync, FakeTrainer

TILE = 2
DROPPED = 7
"""Each so manieth claim is dropped: with one reward missing, too few are left of two."""
PROMPTS = [Prompt(f"t/{i}", f"topic {i}", f"Write about {i}.", (i,)) for i in range(10)]


def make_config(max_staleness):
    return config_from_dict({
        "num_steps": 6,
        "rollout": {"groups_per_step": 4, "group_size": 2, "tile_groups": TILE, "max_staleness": max_staleness},
        "evaluation": {"interval": 3, "num_prompts": 2, "samples_per_prompt": 1},
        "output": {"save_interval": 2, "poems_interval": 1},
    })


def digest(*parts):
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class Engines:
    """Answers whole tiles; what a completion says depends on the weights, the prompt and its index."""

    def __init__(self, events, published):
        self.events, self.published, self.asked = events, published, 0

    def submit(self, requests):
        self.asked += len(requests)
        for start in range(0, len(requests), TILE):
            self.events.deliver(GroupsGenerated(tuple(map(self.group, requests[start : start + TILE]))))

    def group(self, request):
        weights = self.published[request.weight_version]
        texts = [digest(weights, request.key, i) for i in range(request.group_size)]
        completions = tuple(
            Completion(
                array("i", [int(t[:4], 16)]), array("d", [-int(t[4:8], 16) / 7]), t, "stop", request.weight_version
            )
            for t in texts
        )
        return Group(request.key, request.prompt, completions)


class Scorer:
    """What a completion earns follows from its text; some claims lose a reward, and with it their group."""

    def __init__(self, events):
        self.events = events

    def submit(self, groups):
        for group in groups:
            rewards = [Scored(int(c.text[8:12], 16) / 65536, {"structure": 0.5}) for c in group.completions]
            if group.key.claim % DROPPED == DROPPED - 1:
                rewards[0] = Unscored("the judge said nothing")
            rewards = tuple(rewards)
            self.events.deliver(GroupsScored((ScoredGroup(group, rewards),)))

    def stats(self):
        return {}


class Policy(FakeTrainer):
    """Weights are a digest of every batch so far, in order."""

    def __init__(self, events, dies_at):
        super().__init__(events)
        self.weights, self.dies_at = "base", dies_at

    def submit(self, batch):
        if batch.step in self.dies_at:
            self.dies_at.remove(batch.step)
            raise ActorDied("the trainer died")
        self.weights = digest(self.weights, batch)
        super().submit(batch)

    def save(self, directory):
        (directory / "weights.txt").write_text(self.weights)

    def load(self, directory):
        self.weights = (directory / "weights.txt").read_text()


class Sync(FakeSync):
    """Engines keep the two newest versions."""

    def __init__(self, policy, published):
        super().__init__()
        self.policy, self.published = policy, published

    def publish(self, weight_version):
        self.published[weight_version] = self.policy.weights
        self.published.pop(weight_version - 2, None)
        return super().publish(weight_version)


class Quiet:
    """A console that says nothing, but remembers which checkpoints were unusable."""

    recoveries = ()

    def __init__(self):
        self.problems = []

    def resuming(self, state, attempt, problems, changed):
        self.problems += problems

    def __getattr__(self, name):
        return lambda *arguments: None


class Fuse:
    """Kills this process, as `kill -9` would, at the n-th moment where something is about to happen, or just did."""

    def __init__(self, moments, at_event=None):
        """`at_event`: kind, how many of them, and whether the ledger has the last one already."""
        self.left, self.at_event = moments, at_event
        self.passed = 0

    def burn(self, *_):
        self.passed += 1
        if self.left is not None and self.passed > self.left:
            os.kill(os.getpid(), signal.SIGKILL)

    def sink(self, is_recorded):
        """Burns at every event, before or after the ledger has it."""
        seen = Counter()

        def record(event):
            seen[type(event).__name__] += 1
            if self.at_event == [type(event).__name__, seen[type(event).__name__], is_recorded]:
                os.kill(os.getpid(), signal.SIGKILL)
            self.burn()

        return SimpleNamespace(record=record)

    def tear(self, append):
        """Dies with a half of the rows written."""
        def torn(path, rows):
            self.passed += 1
            if self.left is not None and self.passed > self.left:
                text = "".join(json.dumps(row) + "\n" for row in rows)
                with open(path, "a") as file:
                    file.write(text[: len(text) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            append(path, rows)

        return torn

    def around(self, owner, name):
        function = getattr(owner, name)

        def burning(*arguments, **keywords):
            self.burn()
            result = function(*arguments, **keywords)
            self.burn()
            return result

        setattr(owner, name, burning)


def attempt(directory, moments, resume, max_staleness, dies_at, at_event=None):
    """One process of one run; returns how many moments it had, how many groups it drew, what it complained of."""
    fuse, console = Fuse(moments, at_event), Quiet()
    metrics._append = fuse.tear(metrics._append)
    for owner, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (os, "mkdir"), (shutil, "rmtree"),
                        (Path, "write_text"), (Path, "open")):
        fuse.around(owner, name)
    directory.mkdir(exist_ok=True)
    config = make_config(max_staleness)
    asked = []

    def start():
        events, published = FakeEvents(reverse=True), {}  # the trainer overtakes groups claimed ahead
        policy = Policy(events, dies_at)
        engines = Engines(events, published)
        asked.append(engines)
        roles = Roles(engines, Scorer(events), policy, Sync(policy, published), events)
        return nullcontext(Cast(roles, list))

    with open_ledger(directory) as ledger:
        around = Surroundings(
            PromptOrder(PROMPTS[2:], 0), PROMPTS[:2],
            CheckpointStore(directory / "checkpoints", config.output.keep_last, ledger),
            reporters=(fuse_reporter(fuse),), sinks=(fuse.sink(False), ledger, fuse.sink(True)),
        )
        inputs = Inputs(config, PROMPTS[2:], RewardSpec(()))
        Attempts(inputs, directory, around, ledger, console).until_done(start, resume, None)
    drawn = sum(engines.asked for engines in asked)
    return {"moments": fuse.passed, "drawn": drawn, "problems": console.problems}


def fuse_reporter(fuse):
    """Dies between two reporters."""
    reporter = Quiet()
    reporter.step = reporter.evaluation = fuse.burn
    return reporter


def main():
    for line in sys.stdin:
        request = json.loads(line)
        directory = Path(request.pop("directory"))
        child = os.fork()
        if child == 0:
            said = attempt(directory, **request)
            (directory / "said.json").write_text(json.dumps(said))
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
