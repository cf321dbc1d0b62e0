import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhaiku.haiku.numbers import number_readings


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("0", (2,)),
        ("7", (2,)),
        ("12", (1,)),
        ("42", (3,)),
        ("70", (3,)),
        ("100", (3,)),
        ("101", (4, 5, 3)),  # one hundred one; one hundred and one; one oh one
        ("911", (6, 7, 4)),
        ("1,000", (3,)),
        ("1000", (3,)),
        ("1805", (4, 7, 8)),  # eighteen oh five
        ("1984", (5, 9, 10)),
        ("1900", (4, 6)),
        ("1999", (5, 9, 10)),
        ("1,999", (9, 10)),
        ("2000", (3,)),
        ("2005", (4, 5)),
        ("2024", (5, 6, 7)),
        ("1990s", (4, 8, 9)),
        ("90s", (2,)),
        ("1st", (1,)),
        ("2nd", (2,)),
        ("3rd", (1,)),
        ("12th", (1,)),
        ("20th", (3,)),
        ("22ND", (4,)),
        ("100th", (3,)),
        ("1999th", (9, 10)),
        ("3.14", (4,)),
        ("007", (6, 4)),
        ("1,000,000", (3,)),
        ("1234567890123", (15, 14)),
    ],
)
def test_golden_readings(token, expected):
    assert number_readings(token) == expected


def test_what_is_no_number_is_refused():
    with pytest.raises(ValueError, match="'seven'"):
        number_readings("seven")


@given(st.integers(0, 10**15), st.sampled_from(["", "st", "nd", "rd", "th", "s"]))
def test_every_number_can_be_said(value, suffix):
    readings = number_readings(f"{value}{suffix}")
    assert 1 <= min(readings) <= max(readings) <= 80
    assert len(set(readings)) == len(readings) <= 4
