"""How many syllables a number has, in every usual way to say it."""

import re

_SMALL = (2, 1, 1, 1, 1, 1, 1, 2, 1, 1, 1, 3, 1, 2, 2, 2, 2, 3, 2, 2)
"""zero, one ... nineteen."""
_SEVENTY, _OTHER_TENS = 3, 2
_SCALES = ((10**9, 2), (10**6, 2), (10**3, 2), (10**2, 2))
"""Billion, million, thousand, hundred."""
_PARTS = re.compile(r"(?P<whole>\d[\d,]*)(?:\.(?P<fraction>\d+))?(?P<suffix>[a-z]*)", re.IGNORECASE)
_MOST_DIGITS = 12
"""A longer number is said digit by digit."""
_YEARS = range(1010, 2100)
_NOT_IN_PAIRS = range(2000, 2010)


def number_readings(token: str) -> tuple[int, ...]:
    """The distinct syllable counts of `7`, `1,000`, `3.14`, `3rd` or `1990s`, the usual one first.

    A year is said in pairs (nineteen eighty-four) or as a quantity, `911` also as nine eleven, a quantity with or
    without `and`. Raises ValueError if the token does not begin with a digit.
    """
    match = _PARTS.fullmatch(token)
    if match is None:
        raise ValueError(f"a number must be digits, with commas, a point or an ending such as 3rd; got {token!r}.")
    written, fraction, suffix = match["whole"], match["fraction"], match["suffix"].casefold()
    digits = written.replace(",", "")
    if len(digits) > _MOST_DIGITS or (digits[0] == "0" and len(digits) > 1):
        readings = _digit_by_digit(digits)
    elif suffix in ("st", "nd", "rd", "th"):
        ending = _ordinal_extra(int(digits))
        readings = [count + ending for count in _quantities(int(digits))]
    else:
        readings = _plain_number(int(digits), grouped="," in written)
    if fraction:
        readings = [count + 1 + more for count in readings for more in _digit_by_digit(fraction)]
    return tuple(dict.fromkeys(readings))


def _plain_number(value: int, grouped: bool) -> list[int]:
    """Readings of a number without ending; one written with commas is a quantity only."""
    if grouped or value < 101 or value > _YEARS[-1]:
        return _quantities(value)
    if value < 1000:
        return _quantities(value) + ([_pair(value)] if value % 100 else [])
    if value not in _YEARS:
        return _quantities(value)
    if value in _NOT_IN_PAIRS:
        return _quantities(value)
    return [_pair(value), *_quantities(value)]


def _quantities(value: int) -> list[int]:
    """`value` as a quantity, without and with `and` before its last two digits."""
    usual = _quantity(value)
    return [usual, usual + 1] if value > 100 and value % 100 else [usual]


def _quantity(value: int) -> int:
    if value < 100:
        return _below_hundred(value)
    for scale, syllables in _SCALES:
        if value >= scale:
            many, rest = divmod(value, scale)
            return _quantity(many) + syllables + (_quantity(rest) if rest else 0)
    raise AssertionError(value)


def _below_hundred(value: int) -> int:
    if value < len(_SMALL):
        return _SMALL[value]
    tens, ones = divmod(value, 10)
    return (_SEVENTY if tens == 7 else _OTHER_TENS) + (_SMALL[ones] if ones else 0)


def _pair(value: int) -> int:
    """`1984` as nineteen eighty-four, `1805` as eighteen oh five, `1900` as nineteen hundred, `911` as nine eleven."""
    first, last = divmod(value, 100)
    if last == 0:
        return _below_hundred(first) + 2
    return _below_hundred(first) + (last < 10) + _below_hundred(last)


def _ordinal_extra(value: int) -> int:
    """What the ending adds: `second` and `twentieth` have one syllable more than `two` and `twenty`."""
    last = value % 100
    ends_in_second = last == 2 or (last > 20 and last % 10 == 2)
    ends_in_tieth = last >= 20 and last % 10 == 0
    return int(ends_in_second or ends_in_tieth)


def _digit_by_digit(digits: str) -> list[int]:
    """With every 0 as `zero`, then with every 0 as `oh`."""
    zeros = sum(int(digit) == 0 for digit in digits)
    spoken = sum(_SMALL[int(digit)] for digit in digits)
    return [spoken, spoken - zeros] if zeros else [spoken]
