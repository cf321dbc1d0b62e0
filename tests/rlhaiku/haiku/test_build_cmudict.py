import gzip
import sys

from launch import build_cmudict

DICTIONARY = """\
fire F AY1 ER0
fire(2) F AY1 R
aalborg AO1 L B AO0 R G # place, danish
hour AW1 ER0
hour(2) AW1 R
hour(3) AW1 ER0
cat K AE1 T
shh SH
"""


def test_words_with_the_same_readings_share_a_line():
    assert build_cmudict.table_text(DICTIONARY.splitlines()) == "1 cat shh\n2 aalborg\n2,1 fire hour\n"


def test_a_word_is_said_letter_by_letter_in_upper_case_only_unless_that_is_its_usual_way():
    said = ["am AE1 M", "am(2) EY1 EH1 M", "tv T IY1 V IY1", "tv(2) T EH1 L AH0 V IH2 ZH AH0 N", "b. B IY1", "i AY1"]
    assert build_cmudict.table_text(said) == "1 am b. i\n1,2 AM\n2,4 tv\n"


def test_the_script_writes_the_same_bytes_twice(tmp_path, monkeypatch, capsys):
    source = tmp_path / "cmudict.dict"
    source.write_text(DICTIONARY)
    written = []
    for name in ("first.gz", "second.gz"):
        monkeypatch.setattr(sys, "argv", ["build_cmudict", str(source), "--output", str(tmp_path / name)])
        build_cmudict.main()
        written.append((tmp_path / name).read_bytes())
    assert written[0] == written[1]
    assert gzip.decompress(written[0]).decode().startswith("1 cat shh\n")
    assert f"{len(written[0])} bytes" in capsys.readouterr().out


def test_the_shipped_table_is_small_canonical_and_licensed():
    table = build_cmudict.TABLE.read_bytes()
    assert len(table) <= 500_000
    assert table[4:8] == bytes(4), "a time of day in the header would change the bytes at every build"
    lines = gzip.decompress(table).decode().splitlines()
    keys = [tuple(map(int, line.split(" ")[0].split(","))) for line in lines]
    assert keys == sorted(set(keys))
    assert all(line.split(" ")[1:] == sorted(line.split(" ")[1:]) for line in lines)
    licence = build_cmudict.TABLE.with_name("LICENSE.cmudict").read_text()
    assert "Carnegie Mellon University" in licence
    assert "Redistributions in binary form must reproduce" in licence
