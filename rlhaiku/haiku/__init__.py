"""The haiku task: counting syllables, scoring poems, making the data set. Pure functions, no torch.

    spelling    words of a line, syllables by spelling       structure    how close a text is to 5-7-5
    numbers     syllables of numbers                         legitimacy   whether it is made of language
    dictionary  readings of a word                           topic        whether a poem names its topic
    syllables   totals of a line                             reward       what a poem earns
    lemmas      the word behind a form of it                 dataset      topics to prompts, in parquet
    seed_mode   the tutorial's score                         judged       a poem as the judge gets it
                                                             slime_reward   the reward as slime calls it

`data/cmudict.txt.gz` is made from the data file of the CMU Pronouncing Dictionary by `launch/build_cmudict.py`; its
licence is `data/LICENSE.cmudict`.
"""

from rlhaiku.haiku.dataset import SYSTEM_PROMPT, load_rows, prepare_embedded, prepare_rows, user_prompt
from rlhaiku.haiku.dictionary import Dictionary, load_dictionary, load_nltk
from rlhaiku.haiku.legitimacy import Legitimacy, score_legitimacy
from rlhaiku.haiku.reward import HaikuReward, PoemScore
from rlhaiku.haiku.structure import TARGETS, Line, Structure, score_structure, split_lines, strip_template
from rlhaiku.haiku.syllables import count, count_line, line_readings, readings, words
from rlhaiku.haiku.topic import mentions_topic

__all__ = [
    "SYSTEM_PROMPT",
    "TARGETS",
    "Dictionary",
    "HaikuReward",
    "Legitimacy",
    "Line",
    "PoemScore",
    "Structure",
    "count",
    "count_line",
    "line_readings",
    "load_dictionary",
    "load_nltk",
    "load_rows",
    "mentions_topic",
    "prepare_embedded",
    "prepare_rows",
    "readings",
    "score_legitimacy",
    "score_structure",
    "split_lines",
    "strip_template",
    "user_prompt",
    "words",
]
