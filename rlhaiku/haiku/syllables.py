"""How many syllables a word or a line has, by the bundled dictionary.

    line -> words -> readings of each word -> totals of the line

A word's *readings* are the different syllable counts it can be spoken with; `fire` has (2, 1). A line's *totals* are
what its words can add up to, so `the fire of our hour` can have anything from 5 to 8. A set of totals travels as an
int whose bit n is set when n can be reached: adding a word is a shift.
"""

from collections.abc import Sequence
from functools import reduce
from operator import or_

from rlhaiku.haiku.dictionary import Readings, Word, load_dictionary
from rlhaiku.haiku.spelling import fold, words

__all__ = ["count", "count_line", "fold", "line_readings", "reachable", "readings", "spoken_as", "words"]


def readings(word: str) -> Readings:
    """The distinct syllable counts `word` can be spoken with, the usual one first; (0,) if nothing is spoken."""
    return load_dictionary().readings(word)


def count(word: str) -> int:
    """Syllables of `word` as it is usually spoken."""
    return readings(word)[0]


def count_line(line: str) -> int:
    """Syllables of `line`, each word as it is usually spoken."""
    return sum(word.readings[0] for word in load_dictionary().words(line))


def line_readings(line: str) -> frozenset[int]:
    """Every total the line can be spoken with."""
    mask = reachable(load_dictionary().words(line))
    return frozenset(total for total in range(mask.bit_length()) if mask >> total & 1)


def reachable(spoken: Sequence[Word]) -> int:
    """The totals of the words as a bit set: bit n is set when some choice of readings adds up to n."""
    mask = 1
    for word in spoken:
        first, *others = word.readings
        shifted = mask << first
        for other in others:
            shifted |= mask << other
        mask = shifted
    return mask


def spoken_as(parts: Sequence[Readings], total: int) -> tuple[int, ...]:
    """One reading of each part so that they add up to `total`, usual ones preferred, or the usual ones if none do."""
    ends = [1 << total]  # ends[i]: sums of the parts before i from which the rest can still reach the total
    for part in reversed(parts):
        ends.append(reduce(or_, [ends[-1] >> reading for reading in part]))
    ends.reverse()
    if not ends[0] & 1:
        return tuple(part[0] for part in parts)
    chosen: list[int] = []
    for part, end in zip(parts, ends[1:], strict=True):
        so_far = sum(chosen)
        chosen.append(next(reading for reading in part if end >> (so_far + reading) & 1))
    return tuple(chosen)
