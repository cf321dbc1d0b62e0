"""The loop: prompts, rollouts, rewards, advantages, a train step, a weight sync, again.

    1 claim     name the next prompts and ask the engines for a group of completions each
    2 rollout   engines draw them and report `GroupsGenerated`
    3 reward    reward workers score them and report `GroupsScored`
    4 advantage each completion is compared with its group
    5 batch     the step's groups, in claim order
    6 train     the trainer takes one step and reports `StepTrained`
    7 sync      its new weights reach every engine, under the next version

It knows the Protocols of `rlhaiku.roles`, not where they run. All waiting is in `_pump`, and what has happened is told
to sinks and reporters there, while others work. With `max_staleness=1`, stage 1 also asks for the groups of the step
after, and engines draw them while the trainer works: the only difference.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rlhaiku.batching import make_batch, penalize_repeats, read_ahead
from rlhaiku.checkpoints import CheckpointStore, RunState
from rlhaiku.chronicle import Chronicle
from rlhaiku.config import RunConfig
from rlhaiku.errors import BatchEmpty
from rlhaiku.events import GroupsClaimed, GroupsDropped, GroupsGenerated, GroupsScored, GroupsTrained
from rlhaiku.metrics import Reporter, StepReport
from rlhaiku.prompts import PromptOrder, eval_requests
from rlhaiku.roles import EventSink, Roles
from rlhaiku.staleness import StalenessBuffer
from rlhaiku.types import GroupRequest, Prompt, Sampling, ScoredGroup, TrainBatch, TrainStats


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a run reads from and writes to, besides its roles."""

    prompts: PromptOrder
    eval_prompts: Sequence[Prompt]
    checkpoints: CheckpointStore
    reporters: Sequence[Reporter]
    sinks: Sequence[EventSink] = ()
    should_stop: Callable[[], bool] = lambda: False
    """Asked after every step; true ends the run after a checkpoint."""


class Coordinator:
    """Drives one run from a state to its last step."""

    def __init__(self, config: RunConfig, roles: Roles, around: Surroundings, state: RunState | None = None) -> None:
        """`state`: where a resumed run stands; the trainer must already hold its weights."""
        self.config, self.roles, self.around = config, roles, around
        self.state = state or RunState()
        self.chronicle = Chronicle(around.sinks, around.reporters)
        self._buffer = StalenessBuffer(config.rollout.groups_per_step, config.rollout.max_staleness, self.state.step)
        self._evaluated: dict[int, ScoredGroup] = {}
        self._trained: TrainStats | None = None

    def run(self) -> RunState:
        """Trains to the last step, or until asked to stop; evaluates and saves on the way."""
        with self.chronicle:
            self.roles.weight_sync.publish(self.state.weight_version)
            if self.state.step == 0:
                self.evaluate()
            while self.state.step < self.config.num_steps:
                self.step()
                done, stop = self.state.step, self.around.should_stop()
                last = done == self.config.num_steps
                if last or done % self.config.evaluation.interval == 0:
                    self.evaluate()
                if last or stop or done % self.config.output.save_interval == 0:
                    self.save()
                if stop:
                    break
        return self.state

    def step(self) -> None:
        """One train step, stages 1 to 7."""
        step, started = self.state.step, time.perf_counter()
        self.claim(step)
        groups = self.collect(step)
        made = make_batch(step, groups, self.config.algorithm, self.config.rollout.temperature)
        if made.dropped:
            self.chronicle.event(GroupsDropped(step, made.dropped))
        rolled_out = time.perf_counter()
        stats = self.train(made.batch)
        trained = time.perf_counter()
        sync = self.roles.weight_sync.publish(self.state.weight_version + 1)
        seconds = {"rollout": rolled_out - started, "train": trained - rolled_out, "sync": sync.seconds}
        self.state = RunState(step + 1, sync.weight_version)
        self.chronicle.step(StepReport(self.state, groups, made, stats, sync, seconds, self.roles.rewards.stats()))

    def claim(self, step: int) -> None:
        """Asks for the groups of this step, and of as many later ones as `max_staleness` allows."""
        rollout = self.config.rollout
        sampling = Sampling(rollout.temperature, rollout.max_tokens)
        for claims in self._buffer.claims_due(step, last_step=self.config.num_steps - 1):
            named = [self.around.prompts.at(claim) for claim in claims]
            version = self.state.weight_version
            requests = tuple(GroupRequest(key, prompt, rollout.group_size, sampling, version) for key, prompt in named)
            self.roles.rollouts.submit(requests)
            self.chronicle.event(GroupsClaimed(claims.start // rollout.groups_per_step, requests))

    def collect(self, step: int) -> tuple[ScoredGroup, ...]:
        """The step's scored groups, in claim order, once all are there."""
        self._pump(lambda: self._buffer.is_ready(step), f"the scored groups of step {step}")
        return penalize_repeats(self._buffer.take(step), self.config.reward.repeat_penalty)

    def train(self, batch: TrainBatch) -> TrainStats:
        """One train step; groups of the next step go on arriving meanwhile."""
        if not batch.groups:
            raise BatchEmpty(f"step {batch.step} needs a scored group; groups.reason in ledger.sqlite says why")
        self._trained = None
        self.roles.trainer.submit(batch)
        self._pump(lambda: self._trained is not None, f"the trainer's step {batch.step}")
        assert self._trained is not None
        self.chronicle.event(GroupsTrained(tuple(group.key for group in batch.groups), self._trained))
        return self._trained

    def evaluate(self) -> None:
        """Draws and scores completions for the held-out prompts with the current weights."""
        evaluation = self.config.evaluation
        sampling = Sampling(evaluation.temperature, evaluation.max_tokens)
        version, count = self.state.weight_version, evaluation.samples_per_prompt
        requests = eval_requests(self.around.eval_prompts, count, sampling, version)
        self._evaluated = {}
        self.roles.rollouts.submit(requests)
        self._pump(lambda: len(self._evaluated) == len(requests), f"the evaluation after step {self.state.step}")
        self.chronicle.evaluation(self.state, tuple(self._evaluated[i] for i in range(len(requests))))
        self.chronicle.tell()

    def save(self) -> None:
        """A checkpoint with nothing in flight: groups claimed ahead arrive first, so that a resume finds them."""
        self._pump(self._buffer.is_settled, "the groups claimed ahead")
        self.chronicle.tell()
        self.around.checkpoints.save(self.state, self.roles.trainer.save)

    def _pump(self, done: Callable[[], bool], waiting_for: str) -> None:
        """Takes outcomes as they arrive and passes each on, until `done`."""
        while not done():
            event = self.roles.events.next(waiting_for, meanwhile=self.chronicle.tell)
            if isinstance(event, GroupsGenerated):
                self.roles.rewards.submit(event.groups)
                read_ahead(event.groups, self.config.reward.repeat_penalty)
                self.chronicle.event(event)
            elif isinstance(event, GroupsScored):
                self.chronicle.event(event)
                self._evaluated |= {scored.key.claim: scored for scored in event.groups if scored.key.is_eval}
                self._buffer.put(scored for scored in event.groups if not scored.key.is_eval)
            else:
                self._trained = event.stats
