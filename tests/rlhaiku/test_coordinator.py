import pytest

from rlhaiku.checkpoints import CheckpointStore, RunState, read_state
from rlhaiku.config import config_from_dict
from rlhaiku.coordinator import Coordinator, Surroundings
from rlhaiku.errors import BatchEmpty, WaitTimeout
from rlhaiku.events import GroupsClaimed, GroupsDropped, GroupsGenerated, GroupsScored, GroupsTrained
from rlhaiku.prompts import PromptOrder
from rlhaiku.roles import Roles
from rlhaiku.types import Scored, Unscored
from tests.fakes import FakeEvents, FakeReporter, FakeRewards, FakeRollouts, FakeSink, FakeSync, FakeTrainer
from tests.tiny import make_prompt

PROMPTS = [make_prompt(f"p{i}") for i in range(10)]


class World:
    """A coordinator among fakes."""

    def __init__(self, tmp_path, state=None, *, reverse=False, reward=None, stop=lambda: False, reward_tree=None,
                 **overrides):
        tree = {
            "num_steps": overrides.pop("num_steps", 5),
            "rollout": {"groups_per_step": 4, "tile_groups": 2, "group_size": 3} | overrides,
            "evaluation": {"interval": 2, "samples_per_prompt": 2},
            "output": {"save_interval": 2},
            "reward": reward_tree or {},
        }
        config = config_from_dict(tree)
        events = FakeEvents(reverse)
        self.rollouts, self.trainer, self.sync = FakeRollouts(events), FakeTrainer(events), FakeSync()
        rewards = FakeRewards(events, reward) if reward else FakeRewards(events)
        self.reporter, self.sink = FakeReporter(), FakeSink()
        self.store = CheckpointStore(tmp_path / "checkpoints", 2)
        around = Surroundings(
            PromptOrder(PROMPTS, 0), PROMPTS[:3], self.store, (self.reporter,), (self.sink,), should_stop=stop
        )
        roles = Roles(self.rollouts, rewards, self.trainer, self.sync, events)
        self.coordinator = Coordinator(config, roles, around, state)

    def trained_claims(self):
        return [group.key.claim for batch in self.trainer.batches if batch for group in batch.groups]


def test_run_trains_every_claim_once_in_order(tmp_path):
    world = World(tmp_path)
    state = world.coordinator.run()
    assert state == RunState(5, 5)
    assert world.trained_claims() == list(range(20))
    assert world.sync.versions == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
def test_order_of_arrival_changes_nothing(tmp_path, max_staleness):
    worlds = [World(tmp_path / str(r), reverse=r, max_staleness=max_staleness) for r in (False, True)]
    for world in worlds:
        world.coordinator.run()
    assert worlds[0].trainer.batches == worlds[1].trainer.batches


@pytest.mark.parametrize("max_staleness", [0, 1, 2])
def test_staleness_is_bounded_and_reached(tmp_path, max_staleness):
    world = World(tmp_path, max_staleness=max_staleness, num_steps=6)
    world.coordinator.run()
    staleness = [batch.step - s.weight_version for batch in world.trainer.batches for g in batch.groups
                 for s in g.samples]
    assert max(staleness) == max_staleness
    assert min(staleness) == 0
    assert world.trained_claims() == list(range(24))


def test_one_step_ahead_submits_next_groups_before_training(tmp_path):
    world = World(tmp_path, max_staleness=1)
    world.coordinator.roles.weight_sync.publish(0)
    world.coordinator.step()
    claims = [r.key.claim for r in world.rollouts.requests]
    assert claims == list(range(8))
    world.coordinator.step()
    assert [r.key.claim for r in world.rollouts.requests] == list(range(12))
    assert {r.weight_version for r in world.rollouts.requests[8:]} == {1}


def test_evaluates_before_during_and_after(tmp_path):
    world = World(tmp_path)
    world.coordinator.run()
    assert [state.step for state, _ in world.reporter.evaluations] == [0, 2, 4, 5]
    _, groups = world.reporter.evaluations[-1]
    assert [group.group.prompt.prompt_id for group in groups] == [p.prompt_id for p in PROMPTS[:3]]
    assert {len(group.rewards) for group in groups} == {2}
    assert {c.weight_version for group in groups for c in group.group.completions} == {5}


def test_evaluation_groups_are_never_trained(tmp_path):
    world = World(tmp_path)
    world.coordinator.run()
    assert not any(group.key.is_eval for batch in world.trainer.batches for group in batch.groups)


def test_saves_on_interval_and_last_and_keeps_two(tmp_path):
    world = World(tmp_path)
    world.coordinator.run()
    assert [directory.name for directory in world.trainer.saved] == [
        ".step-000002.partial", ".step-000004.partial", ".step-000005.partial"
    ]
    assert [path.name for path in world.store.complete()] == ["step-000004", "step-000005"]


def test_resume_trains_exactly_the_rest(tmp_path):
    whole = World(tmp_path / "whole")
    whole.coordinator.run()
    first = World(tmp_path / "cut", num_steps=2)
    first.coordinator.run()
    state = read_state(first.store.complete()[-1])
    second = World(tmp_path / "cut", state)
    second.coordinator.run()
    assert first.trained_claims() + second.trained_claims() == whole.trained_claims()
    assert second.trainer.batches == whole.trainer.batches[2:]
    assert second.sync.versions[0] == 2
    assert [s.step for s, _ in second.reporter.evaluations] == [4, 5]


def test_stop_request_saves_and_ends(tmp_path):
    asked = []
    world = World(tmp_path, stop=lambda: asked.append(1) or len(asked) == 3)
    assert world.coordinator.run().step == 3
    assert read_state(world.store.complete()[-1]) == RunState(3, 3)


def test_unscored_completions_leave_and_small_groups_drop(tmp_path):
    def reward(group, index):
        claim = group.key.claim
        if group.key.is_eval or claim > 1:
            return Scored(float(index))
        failed = index == 0 if claim == 0 else index < 2
        return Unscored("judge down") if failed else Scored(float(index))

    world = World(tmp_path, reward=reward)
    world.coordinator.run()
    batch = world.trainer.batches[0]
    assert [group.key.claim for group in batch.groups] == [0, 2, 3]
    assert len(batch.groups[0].samples) == 2
    dropped = [event for event in world.sink.events if isinstance(event, GroupsDropped)]
    assert [(event.step, list(event.reasons.values())) for event in dropped] == [(0, ["1 of 3 completions scored"])]
    assert len(world.reporter.steps[0].made.dropped) == 1


def test_step_without_any_group_fails_loudly(tmp_path):
    world = World(tmp_path, reward=lambda group, index: Scored(0.0) if group.key.is_eval else Unscored("down"))
    with pytest.raises(BatchEmpty, match="step 0"):
        world.coordinator.run()
    assert isinstance(world.sink.events[-1], GroupsDropped)  # what ended the run is on record


def test_silence_ends_the_run(tmp_path):
    world = World(tmp_path)
    world.rollouts.submit = lambda requests: None
    with pytest.raises(WaitTimeout, match="evaluation after step 0"):
        world.coordinator.run()


def test_sink_sees_each_group_claimed_generated_scored_trained(tmp_path):
    world = World(tmp_path, max_staleness=1)
    world.coordinator.run()
    lives = {claim: [] for claim in range(20)}
    for event in world.sink.events:
        for name, keys in _keys(event):
            for key in keys:
                if not key.is_eval:
                    lives[key.claim].append(name)
    assert set(map(tuple, lives.values())) == {("claimed", "generated", "scored", "trained")}


def test_whoever_can_work_does_so_before_anybody_is_told(tmp_path):
    world = World(tmp_path)
    given = []  # at every telling: what it is about, claims asked for so far, steps the trainer was given
    record, report = world.sink.record, world.reporter.step

    def note(what):
        claims = [r.key.claim for r in world.rollouts.requests if not r.key.is_eval]
        given.append((what, len(claims), len(world.trainer.batches)))

    world.sink.record = lambda event: (note(type(event).__name__), record(event))
    world.reporter.step = lambda report_: (note("report"), report(report_))
    world.coordinator.roles.weight_sync.publish(0)
    world.coordinator.step()
    world.coordinator.step()
    assert given[0] == ("GroupsClaimed", 4, 0)
    assert given[-1] == ("GroupsScored", 8, 2)  # the step's last, when the trainer has its batch
    assert ("GroupsTrained", 8, 1) in given
    assert ("report", 8, 1) in given  # when the engines have the next step's groups


def test_repeats_cost_before_advantages_and_are_not_in_the_ledger(tmp_path):
    worlds = [World(tmp_path / str(penalty), reward_tree={"repeat_penalty": penalty}) for penalty in (0.0, 0.5)]
    for world in worlds:
        # the first completion of every group is the same poem, the others have no pair of words
        world.rollouts.say = lambda request, i: "the old frog" if i == 0 else str(i)
        world.coordinator.run()
    without, with_penalty = ([scored.rewards[0].total for scored in world.reporter.steps[0].groups] for world in worlds)
    assert without == [0.0] * 4
    assert with_penalty == [-0.5] * 4
    batches = [world.trainer.batches[0].groups[0].samples[0].advantage for world in worlds]
    assert batches[1] < batches[0] < 0
    recorded = [
        scored.rewards[0] for event in worlds[1].sink.events if isinstance(event, GroupsScored)
        for scored in event.groups
    ]
    assert {reward.total for reward in recorded} == {0.0}
    assert not any("repeated" in reward.components for reward in recorded)


def test_repeats_are_read_while_poems_are_scored(tmp_path, monkeypatch):
    world, order = World(tmp_path, reward_tree={"repeat_penalty": 0.5}), []
    rewards = world.coordinator.roles.rewards
    submit = rewards.submit
    monkeypatch.setattr(rewards, "submit", lambda groups: [order.append("scored"), submit(groups)])
    monkeypatch.setattr("rlhaiku.coordinator.read_ahead", lambda groups, penalty: order.append((len(groups), penalty)))
    world.coordinator.step()
    assert order == ["scored", (1, 0.5)] * 4


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_where_nobody_is_ever_waited_for_the_same_is_told_in_the_same_order(tmp_path, max_staleness):
    worlds = [World(tmp_path / str(at_once), max_staleness=max_staleness) for at_once in (False, True)]
    for world, at_once in zip(worlds, (False, True), strict=True):
        world.coordinator.roles.events.at_once = at_once
        world.coordinator.run()
    assert worlds[0].sink.events == worlds[1].sink.events
    steps = [[report.state.step for report in world.reporter.steps] for world in worlds]
    assert steps[0] == steps[1] == [1, 2, 3, 4, 5]


def test_checkpoint_comes_after_everything_that_it_covers(tmp_path):
    world = World(tmp_path)
    told, save = [], world.trainer.save

    def saving(directory):
        told.append((len(world.reporter.steps), len(world.reporter.evaluations)))
        save(directory)

    world.trainer.save = saving
    world.coordinator.run()
    assert told == [(2, 2), (4, 3), (5, 4)]


@pytest.mark.parametrize("failing", ["record", "step"])
def test_what_a_sink_or_reporter_raises_ends_the_run(tmp_path, failing):
    world = World(tmp_path)

    def fail(_):
        raise OSError("disk full")

    setattr(world.sink if failing == "record" else world.reporter, failing, fail)
    with pytest.raises(OSError, match="disk full"):
        world.coordinator.run()
    assert len(world.reporter.steps) == 0
    assert not world.store.complete()


def test_an_error_is_not_hidden_by_one_in_telling_what_came_before_it(tmp_path):
    world = World(tmp_path, reward=lambda group, index: Scored(0.0) if group.key.is_eval else Unscored("down"))
    record = world.sink.record

    def fail_at_the_end(event):
        if isinstance(event, GroupsDropped):
            raise OSError("disk full")
        record(event)

    world.sink.record = fail_at_the_end
    with pytest.raises(BatchEmpty) as caught:
        world.coordinator.run()
    assert any("disk full" in note for note in caught.value.__notes__)


def _keys(event):
    if isinstance(event, GroupsClaimed):
        yield "claimed", [request.key for request in event.requests]
    elif isinstance(event, GroupsGenerated):
        yield "generated", [group.key for group in event.groups]
    elif isinstance(event, GroupsScored):
        yield "scored", [group.key for group in event.groups]
    elif isinstance(event, GroupsTrained):
        yield "trained", event.keys
