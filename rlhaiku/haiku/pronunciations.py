"""From pronunciations, as the CMU Pronouncing Dictionary lists them, to the syllable counts of each word."""

from collections.abc import Iterable, Sequence

LETTERS = {
    "a": "EY", "b": "B IY", "c": "S IY", "d": "D IY", "e": "IY", "f": "EH F", "g": "JH IY", "h": "EY CH", "i": "AY",
    "j": "JH EY", "k": "K EY", "l": "EH L", "m": "EH M", "n": "EH N", "o": "OW", "p": "P IY", "q": "K Y UW",
    "r": "AA R", "s": "EH S", "t": "T IY", "u": "Y UW", "v": "V IY", "w": "D AH B AH L Y UW", "x": "EH K S",
    "y": "W AY", "z": "Z IY",
}  # fmt: skip
"""What letters are called, in phones without stress."""


def count_readings(pronunciations: Iterable[tuple[str, Sequence[str]]]) -> dict[str, tuple[int, ...]]:
    """The distinct counts of each word, the first pronunciation's first.

    Some words are said letter by letter, too: `am` as a.m. is two syllables, with which a policy once learned to fill
    its lines. Unless it is the first, that reading is only for the word in upper case, which is then listed as well.
    """
    readings: dict[str, dict[int, None]] = {}
    in_letters: dict[str, dict[int, None]] = {}
    for word, phones in pronunciations:
        # Vowels carry a stress digit. "hmm" and "shh" have none, but whoever reads them aloud hears one beat.
        count = max(1, sum(phone[-1].isdigit() for phone in phones))
        is_second = word in readings and _is_in_letters(word, phones)
        (in_letters if is_second else readings).setdefault(word, {})[count] = None
    counted = {word: tuple(counts) for word, counts in readings.items()}
    lost = {word: counts for word, counts in in_letters.items() if counts.keys() - readings[word].keys()}
    return counted | {word.upper(): tuple(readings[word] | counts) for word, counts in lost.items()}


def _is_in_letters(word: str, phones: Sequence[str]) -> bool:
    called = " ".join(phone.rstrip("012") for phone in phones)
    return all(letter in LETTERS for letter in word) and called == " ".join(LETTERS[letter] for letter in word)
