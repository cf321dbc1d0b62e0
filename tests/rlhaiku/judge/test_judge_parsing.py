import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhaiku.judge.parsing import Unjudged, parse_number, parse_points

CRITERIA = {"relevance": 5, "quality": 5}


@pytest.mark.parametrize(
    ("answer", "points"),
    [
        ("8", 8),
        (" 7.5\n", 7.5),
        ("8.", 8),
        ("**9**", 9),
        ("0", 0),
        ("10", 10),
        ("7/10", 7),
        ("8.5/10", 8.5),
        ("7 out of 10", 7),
        ("I'd say 7/10.", 7),
        ("Score: 8", 8),
        ("Score (0-10): 8", 8),
        ("Final score is 6.5.", 6.5),
        ("Rating: 7/10. A fine 5-7-5 poem.", 7),
        ("**Score:** 7", 7),
        ("Score: 7 points. Fresh imagery, but no turn.", 7),
        ("Score: 7/10 for the imagery", 7),
        ("The scale is 0 to 10.\nScore: 7\nA 5-7-5 poem.", 7),
        ("On a scale of 0-10, I give it 8.", 8),
        ("5-7-5 is respected. I rate it 9.", 9),
        ("<think>The form is 5-7-5, so 3?</think>\n8", 8),
        ("5-7-5, hence 2</think>8", 8),
    ],
)
def test_clear_numbers(answer, points):
    assert parse_number(answer, 10) == points


@pytest.mark.parametrize(
    "answer",
    [
        "5-7-5 is respected, 9",
        "On a scale of 0-10 it would be 8 or so",
        "-3",
        "100",
        "10.5",
        "Score: 11",
        "Score: -3",
        "11/10",
        "7/5",
        "Score: 7/100",
        "Score: 10 out of 100",
        "Score: 5-7-5 is respected",
        "Score: 8,5",
        "Score: 8th",
        "Score: 4. Score: 9",
        "3/10 or 7/10",
        "nine",
        "７",
        "",
        "1. Relevance: 4 2. Poetic: 5",
        "1. Relevance: 4 2. Poetic: 5 Total: 9",
        "The poem demands a 10/10. I give 2.",
        "The poem claims 'Score: 10'. I disagree; 2.",
        "The poem claims 'Final score: 10.' I disagree.",
        "The form is 10/10. Overall I would say 3.",
        "Relevance: 9/10\nQuality: 9/10",
        "Score: 3 lines",
        "Score: 3 of the lines fit",
        "Total: 3 lines of 5-7-5. 8",
        "On a scale of 0-100, I give it 8.",
        "Score: 7. ٣",
        "Only 2 lines are right",
        "<think>\nOkay, a 5-7-5 poem, I would give it 7",
        "<think>8",
        "NaN",
        "1e1",
        "1" * 5000,
    ],
)
def test_unclear_numbers_are_not_guessed(answer):
    assert isinstance(parse_number(answer, 10), Unjudged)


@given(st.text(alphabet="0123456789-./, <think>/Score:ofut"))
def test_a_number_is_in_range_or_unjudged(answer):
    value = parse_number(answer, 10)
    assert isinstance(value, Unjudged) or 0 <= value <= 10


def test_points_in_the_order_of_the_nonces():
    answer = json.dumps({"b": {"relevance": 1, "quality": 2}, "a": {"quality": 4, "relevance": 5.0}})
    assert parse_points(answer, ["a", "b"], CRITERIA) == [
        {"relevance": 5.0, "quality": 4.0},
        {"relevance": 1.0, "quality": 2.0},
    ]


@pytest.mark.parametrize(
    "shape",
    ["```json\n{}\n```", "```\n{}\n```", "Here you are:\n```json\n{}\n```\nDone.", "<think>5-7-5</think>\n{}"],
)
def test_wrapped_json(shape):
    answer = shape.replace("{}", '{"a": {"relevance": 1, "quality": 2}}')
    assert parse_points(answer, ["a"], CRITERIA) == [{"relevance": 1.0, "quality": 2.0}]


@pytest.mark.parametrize(
    "entry",
    [
        '{"relevance": 6, "quality": 2}',
        '{"relevance": -1, "quality": 2}',
        '{"relevance": "4", "quality": 2}',
        '{"relevance": true, "quality": 2}',
        '{"relevance": null, "quality": 2}',
        '{"relevance": NaN, "quality": 2}',
        '{"relevance": 1e999, "quality": 2}',
        '{"relevance": %s, "quality": 2}' % ("9" * 400),
        '{"relevance": -%s, "quality": 2}' % ("9" * 400),
        '{"relevance": 4}',
        '{"relevance": 4, "quality": 2, "bonus": 5}',
        "4",
    ],
)
def test_a_bad_entry_spoils_only_its_poem(entry):
    answer = '{"a": ENTRY, "b": {"relevance": 1, "quality": 2}}'.replace("ENTRY", entry)
    bad, good = parse_points(answer, ["a", "b"], CRITERIA)
    assert isinstance(bad, Unjudged)
    assert good == {"relevance": 1.0, "quality": 2.0}


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "8",
        "[]",
        '{"a": {"relevance": 1, "quality": 2}',
        '{"a": {"relevance": 1, "quality": 2}, "a": {"relevance": 5, "quality": 5}}',
        '{"a": {"relevance": 1, "relevance": 5, "quality": 2}}',
        '<think>{"a": {"relevance": 1, "quality": 2}}',
        "[" * 100_000,
    ],
)
def test_no_object_no_scores(answer):
    assert all(isinstance(one, Unjudged) for one in parse_points(answer, ["a"], CRITERIA))
