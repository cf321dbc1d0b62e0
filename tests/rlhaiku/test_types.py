"""The values of a step travel between processes whole."""

import copy
import pickle
from array import array
from dataclasses import fields, is_dataclass, replace

import pytest

from rlhaiku import types
from rlhaiku.batching import make_batch
from rlhaiku.config import AlgorithmConfig
from rlhaiku.types import Prompt, Scored, SyncReport, TrainStats, Unscored
from tests.tiny import make_request, make_scored

SCORED = make_scored(3, [0.5, Scored(1.0, {"structure": 1.0}), Unscored("no answer")])
BATCH = make_batch(1, [SCORED], AlgorithmConfig(), 0.7).batch
STATS = TrainStats(1, 0.5, 1.0, 1e-3, 0.1, 0.02, 0.0, 12, 40, truncated_fraction=0.25)
VALUES = [
    make_request(2), make_request().sampling, Prompt("a", "b", "c", (1, 2), reference="d"), SCORED, SCORED.group,
    SCORED.key, SCORED.group.completions[0], *SCORED.rewards, BATCH, BATCH.groups[0], BATCH.groups[0].samples[0], STATS,
    SyncReport(1, 2, 3, 0.5),
]  # fmt: skip


def test_every_type_is_among_them():
    assert {type(each) for each in VALUES} == {each for each in vars(types).values() if is_dataclass(each)}


def test_groups_of_nothing_and_arrays_of_nothing_arrive():
    empty, silent = make_scored(3, []).group, make_scored(3, [1.0]).group
    silent = replace(silent, completions=(replace(silent.completions[0], token_ids=array("i"), logprobs=array("d")),))
    for group in (empty, silent):
        assert pickle.loads(pickle.dumps(group, 5)) == group


@pytest.mark.parametrize("group", [SCORED.group, BATCH.groups[0]], ids=lambda group: type(group).__name__)
def test_groups_travel_as_rows_of_plain_values(group):
    rows = group.__reduce__()[1][-1]
    assert len(rows) > 1
    assert {type(value) for row in rows for value in row} <= {bytes, str, int, float}


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_arrives_as_it_was_sent(value):
    for arrived in (pickle.loads(pickle.dumps(value, 5)), copy.deepcopy(value)):
        assert arrived == value
        assert type(arrived) is type(value)
        assert isinstance(value, types._Value)
        assert [getattr(arrived, field.name) for field in fields(value)] == [
            getattr(value, field.name) for field in fields(value)
        ]
