import random
import time
from collections import defaultdict
from itertools import product
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhaiku.haiku.structure import (
    MAX_LINE_CHARS,
    TARGETS,
    TOO_LONG,
    WRONG_SCRIPT,
    score_structure,
    split_lines,
    strip_template,
)
from rlhaiku.haiku.syllables import readings

POEM = "an old silent pond\na frog jumps into the pond\nsplash! silence again"

# A line of n syllables for n in 0..12: enough to reach every score.
verses = st.integers(0, 12).map(lambda n: " ".join(["moon"] * n) or "...")
prose = st.text(st.sampled_from("ab \n/.`<>|?!é猫"), max_size=60)


@pytest.mark.parametrize(
    ("text", "total", "strict"),
    [
        (POEM, 1.0, True),
        (POEM + "<|im_end|>", 1.0, True),
        (POEM.replace("\n", "  \r\n"), 1.0, True),
        (POEM.replace("pond\n", "pond.  \n\n"), 1.0, True),
        (POEM.replace("\n", " / "), 1.0, True),
        (f"```\n{POEM}\n```", 1.0, True),
        (f"```haiku\n{POEM}```", 1.0, True),
        (f"<think>5-7-5 syllables\nfrog</think>\n\n{POEM}", 1.0, True),
        (f"so, a frog\n</think>\n{POEM}", 1.0, True),
        (POEM + "\nI hope you like it", 0.5625, False),
        ("Title\n" + POEM, 0.5625, False),
        ("Title\n" + POEM.replace("silence", "calm"), 0.46875, False),
        ("Sure, here you go\n" + POEM.replace("silence", "calm") + "\nEnjoy", 0.375, False),
        ("Sure, here you go\n" + POEM.replace("\n", " / ") + "\nEnjoy", 0.45, False),
        ("Here\nis\none\n\n" + POEM, 0.375, False),
        ("assistant\n" + POEM, 1.0, True),
        ("<|im_start|>assistant\n" + POEM, 1.0, True),
        ("<start_of_turn>model\n" + POEM, 1.0, True),
        (POEM.replace("\n", "<br>"), 1.0, True),
        (f"<thinking>5-7-5\nfrog</thinking>\n\n{POEM}", 1.0, True),
        (f"<haiku>\n{POEM}\n</haiku>", 1.0, True),
        (f"{POEM}\n</think>", 1.0, True),
        (f"so, a frog\n</think>\n{POEM}</think><|im_end|>", 1.0, True),
        ("Here is one:\n" + POEM, 0.5625, False),
        ("Here is one:\n\n" + POEM.replace("\n", " / "), 0.5625, False),
        ("Here is one:\n" + POEM.replace("\n", " / "), 0.5625, False),
        ("Sure!\n\nHere is one:\n" + POEM + "\n\nEnjoy", 0.375, False),
        ("**Pond**\n\n" + POEM.replace("\n", "\n\n"), 0.5625, False),
        ("---\n" + POEM + "\n---", 1.0, True),
        ("**" + POEM.replace("\n", "**\n**") + "**", 1.0, True),
        (POEM.replace("pond\na", "pond:\na"), 1.0, True),
        ("- " + POEM.replace("\n", "\n- "), 1.0, True),
        (POEM.replace("silent", "silent 猫"), 0.75, False),
        ("fire in the night\nfire in the cold deep night\nfire in the cold night", 0.875, False),  # said in one way
        ("'fire' in the night\nFire in the cold deep night\nfire' in the cold night", 0.875, False),
        ("US and us, we\na long night without a moon\nus and the US", 1.0, True),  # letter by letter, and not
        (POEM.replace("silence", "calm"), 0.875, False),
        (POEM.replace("an old silent", "old"), 0.75, False),
        ("an old silent pond", 0.25, False),
        ("<think>never closed\n" + POEM, 0.0, False),
        ("", 0.0, False),
        (" \n\t\n", 0.0, False),
    ],
)
def test_golden_scores(text, total, strict):
    structure = score_structure(text)
    assert (structure.total, structure.strict) == (total, strict)


def test_lines_carry_their_counts_and_targets():
    shown = [
        (line.text, line.syllables, line.fewest, line.most, line.target)
        for line in score_structure("an old pond\nour fire\nsplash\n\nmore text").lines
    ]
    assert shown == [
        ("an old pond", 3, 3, 3, 5),
        ("our fire", 4, 2, 4, 7),
        ("splash", 1, 1, 1, 5),
        ("more text", 2, 2, 2, None),
    ]


@pytest.mark.parametrize(
    ("line", "error"),
    [("an old silent pond 猫", WRONG_SCRIPT), ("cat" + " " * MAX_LINE_CHARS + ".", TOO_LONG), ("a", "")],
)
def test_a_line_that_cannot_be_read_has_an_error_and_no_points(line, error):
    first = score_structure(line + "\nb\nc").lines[0]
    assert first.error == error
    assert first.points == 0.0


@pytest.mark.parametrize(
    ("line", "syllables"),
    [("our fire our hour", 5), ("fire fire fire fire fire fire", 6), ("our fire", 4), ("hour", 2)],
)
def test_a_line_is_spoken_as_near_to_its_target_as_it_can_be(line, syllables):
    assert score_structure(line).lines[0].syllables == syllables


HOSTILE = {
    "letters": "a" * 10**6,
    "words": "a " * 10**6,
    "fires": "fire " * 10**5,
    "hyphens": "fire-" * 10**5,
    "apostrophes": "a'" * 10**5,
    "digits": "9" * 10**5,
    "commas": "1,000," * 10**5,
    "tokens": "<|" * 10**5,
    "thoughts": "<think>" * 10**5,
    "ends": "</think>" * 10**5,
    "ligatures": "ﷺ" * 10**4,
    "accents": "e\u0301" * 10**4,
    "colons": ":*" * 10**5,
    "lines": "a\n" * 10**5,
    "blocks": "a:\n\n" * 10**5,
    "camels": "aB" * 10**5,
    "bold": "**a**" * 10**5,
    "readings": "fire hour our flower every power\n" * 10**4,
    "compounds said twice": "\n".join(f"{first + '-our' * 60} " * 2 for first in ("our", "fire", "hour")),
    "long lines of readings": ("fire hour our flower every power " * 12 + "\n") * 10**4,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_line_takes_long(name):
    text = HOSTILE[name][: 20 * MAX_LINE_CHARS]
    score_structure(text)
    started = time.process_time()
    score_structure(text)
    assert time.process_time() - started < 0.02
    score_structure(HOSTILE[name])  # whole: seconds would be noticed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a / b / c", ("a", "b", "c")),
        ("a / b", ("a / b",)),
        ("a / b / c / d", ("a / b / c / d",)),
        ("she and/or the moon\nb/c\nd", ("she and/or the moon", "b/c", "d")),
        ("a / b / c\nd", ("a", "b", "c", "d")),
        ("d\na / b / c\ne", ("d", "a", "b", "c", "e")),
        ("d\na/b/c\ne", ("d", "a/b/c", "e")),
        ("a / b / c\n\nd", ("a", "b", "c", "d")),
        ("1. a\n2) b\n- c", ("a", "b", "c")),
        ("a\n***\nb", ("a", "b")),
        ("One. Two. Three.", ("One. Two. Three.",)),
        (" a \r\n\n b\u2028c ", ("a", "b", "c")),
        ("//", ()),
    ],
)
def test_split_lines(text, expected):
    assert split_lines(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think></think>pond", "pond"),
        ("<think>a</think>po<think>b</think>nd", "pond"),
        ("<think>a<think>b</think>c</think>pond", "pond"),
        ("pond<think>more", "pond"),
        ("<|im_start|>pond<|endoftext|>", "pond"),
        ("a < b | c > d", "a < b | c > d"),
        ("pond```", "pond"),
        ("<thinking>a</thinking>pond", "pond"),
        ("a</think>pond", "pond"),
        ("pond</think>", "pond"),
        ("a</think>pond</think> <|im_end|>", "pond"),
        ("<<SYS>>pond<</SYS>>[BOS]<extra_id_0>[/INST]", "pond"),
        ("pond<br>moon<br/>", "pond\nmoon\n"),
        ("<|start_header_id|>assistant<|end_header_id|>pond", "pond"),
        ("model\npond", "pond"),
        ("model ship\npond", "model ship\npond"),
        ("i <3 the pond [sic]", "i <3 the pond [sic]"),
    ],
)
def test_strip_template(text, expected):
    assert strip_template(text) == expected


@given(st.lists(verses, min_size=3, max_size=3), st.lists(verses, min_size=1, max_size=4))
def test_what_is_said_besides_the_poem_costs_the_quarter_and_its_share(poem, more):
    for text in ("\n".join(poem + more), "\n".join(more + poem), "Here:\n" + "\n".join(poem)):
        structure = score_structure(text)
        assert structure.total <= 0.75 * 3 / len(structure.lines)
    alone = score_structure("\n".join(poem)).total
    assert score_structure("\n".join(poem) + "\n\nEnjoy").total == pytest.approx((alone - 0.25) * 3 / 4)


def test_more_lines_are_no_more_tries_at_a_poem():
    """A policy that knows nothing yet must not find that longer texts earn more: it would never learn to stop."""
    draw = random.Random(0)
    means = []
    for count in range(3, 10):
        texts = ["\n".join(" ".join(["moon"] * draw.randint(2, 10)) for _ in range(count)) for _ in range(400)]
        means.append(fmean(score_structure(text).total for text in texts))
    assert means[0] > 1.5 * max(means[1:]), means


@given(st.lists(verses, max_size=8))
def test_only_exactly_5_7_5_reaches_the_top(poem):
    structure = score_structure("\n".join(poem))
    well_formed = tuple(line.syllables for line in structure.lines) == TARGETS
    assert structure.strict == well_formed == (structure.total == 1.0)
    assert well_formed or structure.total <= 0.875
    assert len(structure.lines) == 3 or structure.total <= 0.5625


@given(st.lists(verses, min_size=3, max_size=3), st.integers(0, 2))
def test_a_line_nearer_to_its_target_never_lowers_the_score(poem, place):
    exact = [*poem[:place], " ".join(["moon"] * TARGETS[place]), *poem[place + 1 :]]
    assert score_structure("\n".join(exact)).total >= score_structure("\n".join(poem)).total


@given(prose)
def test_any_text_scores_in_eighths_of_the_poems_share(text):
    structure = score_structure(text)
    count = max(3, len(structure.lines))
    assert structure.total in {eighths / 8 * 3 / count for eighths in range(9)}
    assert all(line.text == line.text.strip() != "" for line in structure.lines)


FEW_WAYS = st.lists(st.sampled_from(["fire", "flower", "every", "the", "moon"]), min_size=2, max_size=7)


@given(st.lists(FEW_WAYS, min_size=3, max_size=3))
def test_a_word_is_said_alike_wherever_it_stands(lines):
    """By trying every reading of every word."""
    names = sorted({word for line in lines for word in line})
    best = 0.0
    for ways in product(*map(readings, names)):
        said = dict(zip(names, ways, strict=True))
        off = [abs(sum(said[word] for word in line) - target) for line, target in zip(lines, TARGETS, strict=True)]
        best = max(best, 0.25 + sum({0: 0.25, 1: 0.125}.get(each, 0.0) for each in off))
    structure = score_structure("\n".join(map(" ".join, lines)))
    assert structure.total == best
    found = defaultdict(set)
    for word in (word for line in structure.lines for word in line.words):
        found[word.text].add(word.readings)
    assert all(len(ways) == 1 for ways in found.values())


TEMPLATE_TOKENS = (
    "<|im_end|>", "<|im_start|>", "<|im_start|>assistant", "<|endoftext|>", "<s>", "</s>", "<eos>", "<bos>", "<pad>",
    "<unk>", "<mask>", "<end_of_turn>", "<start_of_turn>model", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "[BOS]",
    "[EOS]", "[PAD]", "<extra_id_0>", "<unused7>", "<br>", "<br/>", "</think>", "</thinking>", "<tool_call>",
    "<｜end▁of▁sentence｜>",
)  # fmt: skip


@given(
    st.one_of(prose, st.text(max_size=60), st.just(POEM), st.just("a thought</think>" + POEM)),
    st.lists(st.sampled_from(TEMPLATE_TOKENS), min_size=1, max_size=3).map("".join),
)
def test_appending_template_tokens_changes_nothing(text, tokens):
    assert score_structure(text + tokens) == score_structure(text)


@given(st.lists(verses, min_size=3, max_size=3), st.sampled_from(["moon", "moon moon moon"]), st.integers(0, 2))
def test_a_title_costs_a_near_miss_what_it_costs_a_poem(poem, title, blanks):
    """A line above never shifts the targets."""
    below = score_structure("\n".join(poem)).total
    assert score_structure(title + "\n" * (1 + blanks) + "\n".join(poem)).total >= (below - 0.25) * 3 / 4


@given(prose, st.sampled_from(["<think>", "<think>syllables\n"]))
def test_a_thought_that_begins_after_the_poem_changes_nothing(text, thought):
    # A text that ends inside a token or a thought would join the suffix: not what a template appends to.
    text = text.replace("<", "").replace("`", "")
    assert score_structure(text + thought) == score_structure(text)


@given(st.lists(st.sampled_from(["a moon", "the pond", "snow"]), min_size=3, max_size=3))
def test_slashes_in_a_single_line_are_newlines(lines):
    assert score_structure(" / ".join(lines)) == score_structure("\n".join(lines))
