import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhaiku.haiku.structure import TARGETS, Line, score_structure, split_lines, strip_template

steady = settings(derandomize=True, deadline=None)

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
        (POEM + "\nI hope you like it", 0.75, False),
        ("Title\n" + POEM, 0.0, False),
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
    assert score_structure("an old pond\nfrog\nsplash\n\nmore text").lines == (
        Line("an old pond", 3, 5),
        Line("frog", 1, 7),
        Line("splash", 1, 5),
        Line("more text", 2, None),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a / b / c", ("a", "b", "c")),
        ("a / b", ("a / b",)),
        ("a / b / c / d", ("a / b / c / d",)),
        ("she and/or the moon\nb/c\nd", ("she and/or the moon", "b/c", "d")),
        ("a / b / c\nd", ("a / b / c", "d")),
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
    ],
)
def test_strip_template(text, expected):
    assert strip_template(text) == expected


@steady
@given(st.lists(verses, min_size=3, max_size=3), st.lists(verses, min_size=1, max_size=4))
def test_lines_after_a_poem_of_three_never_raise_its_score(poem, more):
    assert score_structure("\n".join(poem + more)).total < score_structure("\n".join(poem)).total


@steady
@given(st.lists(verses, max_size=8))
def test_only_exactly_5_7_5_reaches_the_top(poem):
    structure = score_structure("\n".join(poem))
    well_formed = tuple(line.syllables for line in structure.lines) == TARGETS
    assert structure.strict == well_formed == (structure.total == 1.0)
    assert well_formed or structure.total <= 0.875
    assert len(structure.lines) == 3 or structure.total <= 0.75


@steady
@given(st.lists(verses, min_size=3, max_size=3), st.integers(0, 2))
def test_a_line_nearer_to_its_target_never_lowers_the_score(poem, place):
    exact = [*poem[:place], " ".join(["moon"] * TARGETS[place]), *poem[place + 1 :]]
    assert score_structure("\n".join(exact)).total >= score_structure("\n".join(poem)).total


@steady
@given(prose)
def test_any_text_scores_in_eighths_between_0_and_1(text):
    structure = score_structure(text)
    assert structure.total in {eighths / 8 for eighths in range(9)}
    assert all(line.text == line.text.strip() != "" for line in structure.lines)


@steady
@given(prose, st.sampled_from(["<|im_end|>", "<|endoftext|>", "<think>", "<think>syllables\n"]))
def test_what_the_template_appends_changes_nothing(text, suffix):
    # A text that ends inside a token or a thought would join the suffix: not what a template appends to.
    text = text.replace("<", "").replace("`", "")
    assert score_structure(text + suffix) == score_structure(text)


@steady
@given(st.lists(st.sampled_from(["a moon", "the pond", "snow"]), min_size=3, max_size=3))
def test_slashes_in_a_single_line_are_newlines(lines):
    assert score_structure(" / ".join(lines)) == score_structure("\n".join(lines))
