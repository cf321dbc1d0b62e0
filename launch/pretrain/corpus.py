"""Documents: chats in which somebody asks for a poem and gets one; and the statistics of a corpus of them."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from random import Random

from launch.pretrain.verse import Poem, Verse

SYSTEM_PROMPT = "You are a haiku poet. You will be given a prompt and you will need to write a haiku about the prompt."
HAIKU_METER = (5, 7, 5)
NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
)  # fmt: skip

# How badly haiku are answered. The base model is to count syllables well and yet not know what a haiku is, so that
# there is something to learn: the mean structure score is to be near 0.50, and exact 5-7-5 rare.
THREE_LINES = 0.84
EXACT_LINE = 0.25
NEAR_LINE = 0.31
_OTHER_LINE_COUNTS = (2, 4, 5)
_LOOSE_LENGTHS = range(3, 10)
_EXTRA_LINE_TARGETS = (5, 7)

_CHUNK_SEED = "rlhaiku pre-training {seed} {chunk}"


@dataclass(frozen=True)
class Document:
    """One chat: a request of some form about a topic, and the poem that answers it."""

    form: str
    topic: str
    request: str
    poem: Poem


@dataclass(frozen=True)
class CorpusStatistics:
    """What a corpus is made of. Shares are fractions of 1; a template share is that of the most common template."""

    documents: int
    distinct_words: int
    haiku_share: float
    haiku_structure_mean: float
    haiku_strict_share: float
    strict_share: float
    topic_mention_share: float
    largest_line_template_share: float
    largest_poem_template_share: float
    line_counts: dict[int, int]
    line_lengths: dict[int, int]

    def as_dict(self) -> dict[str, object]:
        """The statistics as plain data, for a JSON file."""
        return asdict(self)


def structure_score(meter: Sequence[int]) -> float:
    """How near the syllables per line come to a haiku, 0 to 1.

    As the tutorial: a quarter for three lines; for each of the first three a quarter if exact, an eighth if one off.
    """
    score = 0.25 if len(meter) == len(HAIKU_METER) else 0.0
    for length, target in zip(meter, HAIKU_METER, strict=False):
        score += {0: 0.25, 1: 0.125}.get(abs(length - target), 0.0)
    return score


def mentions(text: str, topic: str) -> bool:
    """Whether the text names the topic as a word of its own; plurals and possessives count."""
    return re.search(rf"\b{re.escape(topic)}(?:s|es|'s)?\b", text.replace("\n", " "), re.IGNORECASE) is not None


def haiku_meter(rng: Random) -> list[int]:
    """The syllables of a mediocre haiku's lines, near 5-7-5 more often than not."""
    count = len(HAIKU_METER) if rng.random() < THREE_LINES else rng.choice(_OTHER_LINE_COUNTS)
    targets = [*HAIKU_METER, *(rng.choice(_EXTRA_LINE_TARGETS) for _ in range(count))][:count]
    return [_noisy_length(rng, target) for target in targets]


def _noisy_length(rng: Random, target: int) -> int:
    draw = rng.random()
    if draw < EXACT_LINE:
        return target
    if draw < EXACT_LINE + NEAR_LINE:
        return target + rng.choice((-1, 1))
    return rng.choice([length for length in _LOOSE_LENGTHS if abs(length - target) > 1])


def _fixed(request: str, *meter: int) -> Callable[[Random], tuple[str, Sequence[int]]]:
    return lambda rng: (request, meter)


def _haiku(rng: Random) -> tuple[str, Sequence[int]]:
    return "Write me a haiku", haiku_meter(rng)


def _free_verse(rng: Random) -> tuple[str, Sequence[int]]:
    return "Write me some free verse", [rng.randint(3, 10) for _ in range(rng.randint(3, 6))]


def _one_line(rng: Random) -> tuple[str, Sequence[int]]:
    length = rng.randint(3, 12) if rng.random() > 0.02 else 1
    noun = "syllable" if length == 1 else "syllables"
    return f"Write a line of {NUMBER_WORDS[length]} {noun}", [length]


def _equal_lines(rng: Random) -> tuple[str, Sequence[int]]:
    count, length = rng.randint(2, 5), rng.randint(3, 10)
    return f"Write me {NUMBER_WORDS[count]} lines of {NUMBER_WORDS[length]} syllables", [length] * count


# The forms: weight, and what yields the request and the meter. Those with a strict meter teach syllables.
_FORMS: dict[str, tuple[float, Callable[[Random], tuple[str, Sequence[int]]]]] = {
    "haiku": (0.38, _haiku),
    "line": (0.15, _one_line),
    "lines": (0.17, _equal_lines),
    "couplet": (0.05, _fixed("Write me a couplet", 8, 8)),
    "quatrain": (0.05, _fixed("Write me a quatrain", 6, 6, 6, 6)),
    "cinquain": (0.05, _fixed("Write me a cinquain", 2, 4, 6, 8, 2)),
    "lune": (0.05, _fixed("Write me a lune", 5, 3, 5)),
    "tanka": (0.06, _fixed("Write me a tanka", 5, 7, 5, 7, 7)),
    "free verse": (0.04, _free_verse),
}


def write_document(rng: Random, verse: Verse, topics: Sequence[str]) -> Document:
    """One document about one of `topics`."""
    form = rng.choices(list(_FORMS), [weight for weight, _ in _FORMS.values()])[0]
    request, meter = _FORMS[form][1](rng)
    topic = rng.choice(topics)
    return Document(form, topic, f"{request} about {topic}.", verse.poem(rng, topic, meter))


def write_documents(verse: Verse, seed: int, chunk: int, count: int) -> list[Document]:
    """The documents of one chunk of the corpus; chunks depend on the seed and on nothing else."""
    rng = Random(_CHUNK_SEED.format(seed=seed, chunk=chunk))
    topics = sorted(verse.topics)
    return [write_document(rng, verse, topics) for _ in range(count)]


def _share(flags: Iterable[bool], total: int) -> float:
    return sum(flags) / max(1, total)


def _largest_share(templates: Iterable[object]) -> float:
    counts = Counter(templates)
    return max(counts.values(), default=0) / max(1, counts.total())


def corpus_statistics(documents: Sequence[Document]) -> CorpusStatistics:
    """Measures a corpus. Poems of a single line have no poem template: a line's template is counted as a line."""
    total = len(documents)
    poems = [document.poem for document in documents]
    lines = [line for poem in poems for line in poem.lines]
    haiku = [document.poem.meter for document in documents if document.form == "haiku"]
    return CorpusStatistics(
        documents=total,
        distinct_words=len({word for line in lines for word in line.text.split()}),
        haiku_share=len(haiku) / max(1, total),
        haiku_structure_mean=sum(map(structure_score, haiku)) / max(1, len(haiku)),
        haiku_strict_share=_share((meter == HAIKU_METER for meter in haiku), len(haiku)),
        strict_share=_share((poem.meter == HAIKU_METER for poem in poems), total),
        topic_mention_share=_share((mentions(doc.poem.text, doc.topic) for doc in documents), total),
        largest_line_template_share=_largest_share(line.template for line in lines),
        largest_poem_template_share=_largest_share(
            tuple(line.template for line in poem.lines) for poem in poems if len(poem.lines) > 1
        ),
        line_counts=dict(sorted(Counter(len(poem.lines) for poem in poems).items())),
        line_lengths=dict(sorted(Counter(line.syllables for line in lines).items())),
    )
