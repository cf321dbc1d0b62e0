import json
import os
import subprocess
import sys

import pytest

from launch.score import poem_panel, read_poems, score_poem
from rlhaiku.errors import BadInput

RLHAIKU = [sys.executable, "-c", "from launch.cli import main; main()", "score"]
POEM = "an old silent pond\na frog jumps into the pond\nsplash! silence again"


def rlhaiku(*arguments, stdin=""):
    environment = os.environ | {"NO_COLOR": "1"}
    return subprocess.run([*RLHAIKU, *arguments], input=stdin, capture_output=True, text=True, env=environment)


def printed(poem, width=110):
    from rich.console import Console

    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(poem_panel(poem))
    return capture.get()


def test_json_is_one_object_a_line():
    done = rlhaiku("--json", "--topic", "frog", stdin=f"{POEM}\n---\nour fire\n")
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert list(first) == ["total", "components", "lines"]
    assert first["total"] == 1.0
    assert (first["components"]["legitimacy"], first["components"]["topic"]) == (1.0, 1.0)
    assert first["lines"][1] == {"text": "a frog jumps into the pond", "syllables": [7, 7], "target": 7}
    assert second["lines"] == [{"text": "our fire", "syllables": [2, 4], "target": 5}]


def test_what_further_lines_cost_is_said():
    assert "points x 3/5" in printed(score_poem(f"Enjoy!\n{POEM}\nEnd"))


def test_a_piped_poem_is_readable():
    done = rlhaiku("-", stdin=POEM)
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    words = next(i for i, row in enumerate(rows) if "an old silent pond" in row)
    assert [rows[words - 1].index("2"), rows[words].index("silent")] == [
        rows[words].index("silent") + 2,
        rows[words].index("silent"),
    ]
    assert "5 of 5" in rows[words]
    assert all(name in done.stdout for name in ("structure", "legitimacy", "repetition", "total"))
    assert "\x1b" not in done.stdout


def test_nothing_in_a_poem_steers_the_terminal():
    done = rlhaiku("-", stdin="an old \x1b[31msilent pond\x07\n\u202ea frog \x9b2Jjumps\nsplash")
    assert done.returncode == 0, done.stderr
    assert "[31msilent" in done.stdout
    assert not set("\x1b\x07\x9b\u202e") & set(done.stdout)


def test_the_score_command_never_loads_torch_or_ray():
    code = f"import sys; sys.argv = ['rlhaiku', 'score']; from launch.score import *; score_poem({POEM!r}); "
    code += "print({'torch', 'ray', 'transformers', 'datasets'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_what_is_wrong_with_a_line_is_said():
    view = printed(score_poem("Here you go:\nour old pond 猫\nthe moonpetal fire\nfrog"))
    for words in ("not in Latin script", "not one of the three lines", "~3", "(5 to 6)", "of 5 ✗"):
        assert words in view


def test_a_reading_that_fits_is_shown_above_its_word():
    (line, *_) = score_poem("fire in the cold night").lines
    assert (line.counts[0], line.syllables) == (("fire", "1"), 5)


@pytest.mark.parametrize("line", ["us and US, in fire-lit hours", "every 1,000 fires", "'fire' and fire", "IT said it"])
def test_what_is_shown_above_words_adds_up(line):
    lines = score_poem(f"{line}\nfire, US, it and every hour\n{line}").lines
    for each in lines:
        assert sum(int(count.lstrip("~") or 0) for _, count in each.counts) == each.syllables


def test_seed_mode_shows_the_tutorials_segments():
    poem = score_poem(POEM + "<|im_end|>", mode="seed")
    assert poem.scored.total == 0.75
    assert (poem.lines[2].syllables, poem.lines[2].counts[-1]) == (7, ("again<|im_end|>", "4"))


def test_a_very_long_line_does_not_break_the_panel():
    assert all(len(row) <= 60 for row in printed(score_poem("moon " * 60), width=60).splitlines())


@pytest.mark.parametrize(
    ("content", "poems"), [(POEM, [POEM]), (f"\n{POEM}\n---\npond\n---\n", [POEM, "pond"]), ("a --- b", ["a --- b"])]
)
def test_poems_are_separated_by_a_line_of_three_dashes(tmp_path, content, poems):
    (tmp_path / "poems.txt").write_text(content)
    assert read_poems(str(tmp_path / "poems.txt")) == poems


@pytest.mark.parametrize(
    ("content", "rule"), [(None, "must be a text file"), (b"\xff\xfe", "UTF-8"), (b"---\n", "must hold a poem")]
)
def test_bad_input_says_what_to_do(tmp_path, content, rule):
    if content is not None:
        (tmp_path / "poems.txt").write_bytes(content)
    with pytest.raises(BadInput, match=rule):
        read_poems(str(tmp_path / "poems.txt"))


def test_bad_input_exits_2():
    done = rlhaiku("/no/such/file")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
