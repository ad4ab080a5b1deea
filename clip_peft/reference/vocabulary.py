"""The reference model's byte-pair vocabulary, learnt from the captions' words: `python -m clip_peft.reference.vocabulary`.

Sennrich et al., "Neural Machine Translation of Rare Words with Subword Units", 2016. The file has the format of
open_clip's `SimpleTokenizer`: a heading, then a merge a line.
"""

from __future__ import annotations

import gzip
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

from peft_data.world.phrases import FORMS, HELD_BACK, WORDS, caption_words

from . import VOCABULARY

HEADING = "#version: words of the drawn world"


def words() -> list[str]:
    """The words that pretraining's captions may hold, sorted; those held back are not among them."""
    known = {word for column, names in WORDS.items() for word in names if word not in HELD_BACK.get(column, ())}
    text = " ".join([*known, *caption_words(), *(form.format(np="", a="a an", where="") for form in FORMS)])
    held = {word for names in HELD_BACK.values() for word in names}
    return sorted(set(re.findall("[a-z]+", text.lower())) - held)


def learn(vocabulary: list[str]) -> list[tuple[str, str]]:
    """Merges, the most frequent pair first (ties by alphabet), until every word is one token."""
    split = [(*word[:-1], word[-1] + "</w>") for word in vocabulary]
    merges = []
    while True:
        pairs = Counter(pair for word in split for pair in pairwise(word))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        split = [_merged(word, best) for word in split]


def _merged(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    out, k = [], 0
    while k < len(word):
        step = 2 if word[k : k + 2] == pair else 1
        out.append("".join(word[k : k + step]))
        k += step
    return tuple(out)


def write(path: Path, merges: list[tuple[str, str]]) -> None:
    """The vocabulary file; the same merges give the same bytes."""
    text = "\n".join([HEADING, *map(" ".join, merges)])
    path.write_bytes(gzip.compress(text.encode(), mtime=0))


if __name__ == "__main__":
    write(VOCABULARY, learn(words()))
