"""Makes the syllable table of `rlhaiku.haiku.syllables` from the data file of the CMU Pronouncing Dictionary.

    python -m launch.build_cmudict PATH_TO_cmudict.dict [--output TABLE]

Only the data file is used (its licence lies beside the table), never a Python wrapper of it. One line per distinct
tuple of readings: the syllable counts, the first pronunciation's first, then every word that has them, e.g.
`2,1 fire hour ...`. The same source gives the same bytes.
"""

import argparse
import gzip
import io
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import rlhaiku.haiku
from rlhaiku.haiku.pronunciations import count_readings

TABLE = Path(rlhaiku.haiku.__file__).parent / "data" / "cmudict.txt.gz"

_VARIANT = re.compile(r"\(\d+\)$")


def table_text(dictionary: Iterable[str]) -> str:
    """The table of lines such as `fire(2) F AY1 R # comment`: variants of a word follow its first pronunciation."""
    entries = [fields for line in dictionary if (fields := line.split("#")[0].split())]
    readings = count_readings((_VARIANT.sub("", entry), phones) for entry, *phones in entries)
    words_by_readings: defaultdict[tuple[int, ...], list[str]] = defaultdict(list)
    for word in sorted(readings):
        words_by_readings[readings[word]].append(word)
    return "".join(
        f"{','.join(map(str, counts))} {' '.join(words)}\n" for counts, words in sorted(words_by_readings.items())
    )


def compressed(text: str) -> bytes:
    """`text` gzipped without name or time, so that the bytes depend on the text alone."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=buffer, mtime=0) as stream:
        stream.write(text.encode())
    return buffer.getvalue()


def main() -> None:
    """Writes the table and says how large it is."""
    parser = argparse.ArgumentParser(description="Make the syllable table from cmudict.dict.")
    parser.add_argument("dictionary", type=Path, help="cmudict.dict, the data file")
    parser.add_argument("--output", type=Path, default=TABLE, help="where the table goes")
    arguments = parser.parse_args()
    with arguments.dictionary.open(encoding="utf-8") as dictionary:
        table = compressed(table_text(dictionary))
    arguments.output.write_bytes(table)
    print(f"{arguments.output}: {len(table)} bytes")


if __name__ == "__main__":
    main()
