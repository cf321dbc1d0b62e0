"""The haiku task: counting syllables, scoring poems, making the data set. Pure functions, no torch.

    syllables   readings of a word, syllables of a line      structure   how close a text is to 5-7-5
    topic       whether a poem names its topic               reward      what a poem earns
    dataset     topics to prompts, in parquet

`data/cmudict.txt.gz` is made from the data file of the CMU Pronouncing Dictionary by `launch/build_cmudict.py`; its
licence is `data/LICENSE.cmudict`.
"""

from rlhaiku.haiku.dataset import SYSTEM_PROMPT, load_rows, prepare_embedded, prepare_rows, user_prompt
from rlhaiku.haiku.reward import HaikuReward
from rlhaiku.haiku.structure import TARGETS, Line, Structure, score_structure, split_lines, strip_template
from rlhaiku.haiku.syllables import count, count_line, readings, words
from rlhaiku.haiku.topic import mentions_topic

__all__ = [
    "SYSTEM_PROMPT",
    "TARGETS",
    "HaikuReward",
    "Line",
    "Structure",
    "count",
    "count_line",
    "load_rows",
    "mentions_topic",
    "prepare_embedded",
    "prepare_rows",
    "readings",
    "score_structure",
    "split_lines",
    "strip_template",
    "user_prompt",
    "words",
]
