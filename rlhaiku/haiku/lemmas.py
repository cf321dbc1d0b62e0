"""The word behind a form of it, and which words say nothing by themselves."""

import re

from rlhaiku.haiku.topic import singular

# fmt: off
FUNCTION_WORDS = frozenset((
    "a", "an", "the", "and", "or", "but", "nor", "so", "yet", "if", "as", "than", "then", "though", "although",
    "unless", "because", "since", "while", "until", "till", "whether", "about", "above", "across", "after", "against",
    "along", "amid", "among", "around", "at", "before", "behind", "below", "beneath", "beside", "besides", "between",
    "beyond", "by", "down", "during", "for", "from", "in", "inside", "into", "like", "near", "of", "off", "on",
    "onto", "out", "outside", "over", "past", "through", "throughout", "to", "toward", "towards", "under",
    "underneath", "up", "upon", "with", "within", "without", "via", "that", "this", "these", "those", "there", "here",
    "who", "whom", "whose", "which", "what", "when", "where", "why", "how", "i", "me", "my", "mine", "you", "your",
    "yours", "we", "us", "our", "ours", "he", "him", "his", "she", "her", "hers", "it", "its", "they", "them",
    "their", "theirs", "no", "not", "is", "am", "are", "was", "were", "be", "been", "being", "do", "does", "did",
    "has", "have", "had", "will", "would", "can", "could", "shall", "should", "may", "might", "must", "isn't",
    "aren't", "wasn't", "weren't", "don't", "doesn't", "didn't", "hasn't", "haven't", "hadn't", "won't", "wouldn't",
    "can't", "couldn't", "shouldn't", "mustn't", "aah", "ah", "aha", "aw", "eh", "er", "erm", "ha", "hey", "hm",
    "hmm", "hmmm", "huh", "mm", "mmm", "o", "oh", "ooh", "ow", "oy", "sh", "shh", "ugh", "uh", "um", "wow", "yay",
    "yo",
))
# fmt: on
"""Articles, conjunctions, prepositions, pronouns, auxiliaries and cries."""

_ENDING = re.compile(r"'(?:s|d|ll|re|ve|m)$")
_INFLECTION = re.compile(r"(?<=[a-z]{3})(?:ing|ed)$")
_DOUBLED = re.compile(r"([^lsz])\1$")


def lemma(word: str) -> str:
    """The key under which the forms of a folded word meet (`cats`, `cat's`; `runs`, `running`), itself no word maybe.

    Function words stay as they are.
    """
    bare = _ENDING.sub("", word.strip("'"))
    if bare in FUNCTION_WORDS:
        return bare
    stem = _INFLECTION.sub("", bare)
    return singular(bare) if stem == bare else _DOUBLED.sub(r"\1", stem)
