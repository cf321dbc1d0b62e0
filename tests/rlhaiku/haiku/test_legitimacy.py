import tomllib
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlhaiku.haiku.legitimacy import PARTS, score_legitimacy
from rlhaiku.haiku.structure import score_structure

REFERENCES = tomllib.loads(resources.files("rlhaiku").joinpath("assets", "references.toml").read_text(encoding="utf-8"))
HONEST = (Path(__file__).parent / "honest.txt").read_text(encoding="utf-8").split("\n\n")[1:]
POEM = "an old silent pond\na frog jumps into the pond\nsplash! silence again"


def legitimacy(text, *sources):
    return score_legitimacy(score_structure(text).poem, sources)


def lowered(text, *sources):
    return {name: value for name, value in legitimacy(text, *sources).parts.items() if value < 1.0}


@pytest.mark.parametrize("poem", REFERENCES["haiku"], ids=lambda poem: poem["topic"])
def test_every_reference_poem_is_legitimate(poem):
    others = [other["text"] for other in REFERENCES["haiku"] if other is not poem]
    assert lowered(poem["text"], *others) == {}
    assert legitimacy(poem["text"]).total == 1.0


@pytest.mark.parametrize("poem", HONEST, ids=lambda poem: poem.split("\n")[0])
def test_every_honest_poem_earns_everything(poem):
    assert score_structure(poem).strict
    prompt = "You are a haiku poet. You will be given a prompt and you will need to write a haiku about the prompt."
    assert lowered(poem, prompt, *[reference["text"] for reference in REFERENCES["haiku"]]) == {}


def test_there_are_many_honest_poems():
    assert len(set(HONEST)) >= 40


@pytest.mark.parametrize(
    ("text", "part", "value"),
    [
        (POEM + " 猫", "script", pytest.approx(13 / 14)),
        ("1 2 3 4 5\n6 7 8\n9", "script", 0.0),
        ("a.-.-.-.-n\nb", "script", pytest.approx(0.3)),
        ("zoop blarg\nfrimp dwonk\nshorp", "real_words", 0.0),
        ("the frog zoops a blarg\nin the dwonk of our cold pond", "real_words", 1.0),
        ("the frog zoops a blarg\nin the dwonk of our shlorp pond", "real_words", pytest.approx(0.6538, abs=1e-4)),
        ("balavadama\nthe frog of the cold old pond\nnobody comes home", "real_words", pytest.approx(0.7353, abs=1e-4)),
        ("moonpetaling sun\nthe frog of the cold old pond\nnobody comes home", "real_words", 1.0),
        ("catcatcatcatcat\nthe frog of our cold old pond\nat home", "real_words", pytest.approx(0.5)),
        ("b d frog pond\nmoon night", "spelling", pytest.approx(0.5)),
        ("b c d frog\npond moon", "spelling", 0.0),
        ("rain rain rain rain\nfrog pond moon night", "repetition", pytest.approx(0.75 * 0.625 * 0.9)),
        ("pond moon frog pond moon\nfrog pond moon frog\ncat", "repetition", 0.0),
        ("drip drip drip drip drip\nthe old tap in the kitchen\nsays", "repetition", pytest.approx(0.1556, abs=1e-4)),
        ("the of and to in\nthe of and to in the of\ncat dog fish in of", "content", pytest.approx(0.5098, abs=1e-4)),
        ("cat dog fish bird cow\npig hen duck goose fox bear wolf\ndeer moose", "content", pytest.approx(1 / 3)),
        ("cat dog fish bird cow\npig hen duck goose fox bear wolf\nthe deer mouse and bat", "content", 1.0),
        ("cat cat\nthe cat", "repetition", pytest.approx(1 / 3)),
        (POEM.replace("splash! silence again", "an old silent pond"), "variety", 0.5),
        ("frog\npond moon night", "length", 1.0),
        ("pond", "length", 0.5),
        ("the old frog in ponds " * 16, "length", 0.5),
    ],
)
def test_a_part_for_every_trick(text, part, value):
    assert legitimacy(text).parts[part] == value


@pytest.mark.parametrize(
    "text",
    [
        "rain on the tin roof\nrain in the empty bucket\nand nobody home",
        "the moon and the pond\nthe frog and the quiet reeds\nthe night and the stars",
        "pond, pond, old pond\nthe frog comes home",
        "moonpetals falling\nthe gardener rests her hands",
        "I saw vitamin C\nby the pond",
        "serverless GPUs\nhum by a 2nd pond",
        "cherry petals fall\ncherry petals on the pond\ncherry petals gone",
        "drip, drip, drip, the tap\ncounts the night",
    ],
)
def test_what_poets_do_costs_nothing(text):
    assert lowered(text) == {}


def test_copying_counts_words_in_long_runs():
    source = "You are a haiku poet. " + POEM
    assert legitimacy(POEM, source).parts["copying"] == 0.0
    assert (
        legitimacy("an old silent pond\nholds the cold moon for the frogs\nall through the winter", source).total == 1.0
    )
    half = POEM.split("\n")[0] + " a frog\nholds the cold moon for the night"
    assert 0.0 < legitimacy(half, source).parts["copying"] < 1.0
    assert legitimacy(POEM, "", "some other text about a pond").total == 1.0
    assert legitimacy("a cold frog\nin a pond", "Write me a haiku about a frog in the pond.").parts["copying"] == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "'an' old' 'silent pond'\na' frog' jumps' into' the' pond'\nsplash'! 'silence 'again",
        "an old silent lake\na frog leaps into the pond\nsplash! quiet again",
        "an-old silent-pond\na-frog jumps-into the-pond\nsplash! silence-again",
        "an old silent pond's\nfrogs jumping into the ponds\nsplash! silence again",
    ],
)
def test_a_disguised_copy_is_a_copy(text):
    assert legitimacy(text, POEM).parts["copying"] <= 0.1


def test_words_outside_the_dictionary_are_counted():
    assert legitimacy("the moonpetal falls").oov_share == pytest.approx(1 / 3)
    assert legitimacy("").oov_share == 0.0


@given(st.text(max_size=120))
def test_any_text_has_a_factor_and_all_parts_between_0_and_1(text):
    found = legitimacy(text, "a source of some words")
    assert tuple(found.parts) == PARTS
    assert all(0.0 <= value <= 1.0 for value in (found.total, found.oov_share, *found.parts.values()))
