"""Captions of named pictures in many forms, which words and combinations pretraining never sees, and what is true.

A caption mentions some attributes of a picture (`named.COLUMNS`). It is true of every picture that agrees in those.
"""

from __future__ import annotations

import torch

from .draw import Draw
from .named import COLOURS, COLUMNS, FIRST_ANIMAL, GROUNDS, NOUNS, SIZES
from .scene import FLAT_GROUNDS

PATTERNED = (
    "plain",
    "striped",
    "chequered",
    "dotted",
    "ringed",
    "blotchy",
    "bricked",
    "zigzag",
    "grained",
    "meshed",
    "cracked",
    "scaly",
)
"""The adjective of each of `textures.TEXTURES`."""
WORDS = {"noun": NOUNS, "colour": COLOURS, "texture": PATTERNED, "size": SIZES, "ground": GROUNDS}
HELD_BACK = {
    "noun": ("wedge", "rosette", "hammer", "camel", "ant"),
    "colour": ("teal",),
    "texture": ("meshed",),
    "ground": ("valley",),
}
"""Words that are in no caption of pretraining, as no picture shows what they name (as its main thing)."""

_WHERE = {
    "mountains": "in the mountains",
    "hills": "in the hills",
    "sea": "by the sea",
    "city": "in a city",
    "forest": "in a forest",
    "furrows": "in a field of furrows",
    "village": "in a village",
    "cave": "in a cave",
    "valley": "in a valley",
    "room": "in a room",
}
# {np}: the noun phrase without article, {a}: with it, {where}: " on a blue background" or nothing.
FORMS = (
    "{np}{where}",
    "{a}{where}",
    "{a}{where}.",
    "a photo of {a}{where}.",
    "a photo of {a}{where}.",
    "a picture of {a}{where}",
    "a drawing of {a}{where}.",
    "there is {a}{where}.",
    "this is {a}{where}.",
    "the {np}{where}",
    "one {np}{where}",
    "we see {a}{where}.",
    "an image with {a}{where}",
    "look, {a}{where}!",
)
_CHANCE = {"noun": 0.75, "colour": 0.5, "texture": 0.4, "size": 0.15, "ground": 0.25, "ground colour": 0.25}


def caption_words() -> list[str]:
    """The phrases that captions are made of beside FORMS and WORDS."""
    places = [where for ground, where in _WHERE.items() if ground not in HELD_BACK["ground"]]
    return [*places, "on a background", "animal", "thing"]


def new_combination(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Whether a pair of attribute values (noun with colour, texture or ground) is one that pretraining leaves out."""
    return (first * 5 + second * 7) % 4 == 0


def held_back(known: torch.Tensor) -> torch.Tensor:
    """N bool: whether a row of attributes (N 6) has a word or a combination that pretraining leaves out."""
    out = torch.zeros(len(known), dtype=torch.bool)
    for column, words in HELD_BACK.items():
        values = known[:, COLUMNS.index(column)]
        for word in words:
            out |= values == WORDS[column].index(word)
    noun, colour, texture, _, ground, _ = known.unbind(1)
    for values, least in ((colour, 0), (texture, 1), (ground, len(FLAT_GROUNDS))):
        out |= (values >= least) & new_combination(noun, values)
    return out


def mentions(draw: Draw, known: torch.Tensor) -> torch.Tensor:
    """N 6 bool: which attributes a caption of each picture speaks of: one at least, and only what applies."""
    chance = torch.tensor([_CHANCE[column] for column in COLUMNS])
    said = (draw.uniform(*known.shape) < chance) & (known >= 0)
    said[:, 3] &= known[:, 3] != SIZES.index("medium")
    said[:, 2] &= (known[:, 2] > 0) | draw.chance(len(known), p=0.3)
    said[:, 0] |= ~said[:, :3].any(1)
    said[:, 5] &= (known[:, 4] > 0) | draw.chance(len(known), p=0.5)
    return said


def caption(known: list[int], said: list[bool], form: int) -> str:
    """One caption.

    Args:
        known: a row of attributes.
        said: which of them it mentions.
        form: index into FORMS.
    """
    words = [WORDS[column][known[k]] for column, k in (("size", 3), ("colour", 1), ("texture", 2)) if said[k]]
    noun = NOUNS[known[0]] if said[0] else "animal" if known[0] >= FIRST_ANIMAL else "thing"
    phrase = " ".join([*words, noun])
    return FORMS[form].format(np=phrase, a=with_article(phrase), where=_where(known, said))


def _where(known: list[int], said: list[bool]) -> str:
    if said[4] and known[4] >= len(FLAT_GROUNDS):
        return " " + _WHERE[GROUNDS[known[4]]]
    words = [GROUNDS[known[4]]] * said[4] + ([COLOURS[known[5]]] if said[5] else [])
    return f" on {with_article(' '.join(words))} background" if words else ""


def with_article(phrase: str) -> str:
    """The phrase with its indefinite article, for example "an arrow"."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def scene_name(noun: str, ground: str) -> str:
    """For example "fish in a cave"."""
    return f"{noun} {_WHERE[ground]}"


def true_of(known: torch.Tensor, said: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
    """N C bool: whether caption c (attributes `known` C 6, of which it mentions `said`) is true of picture n.

    Args:
        known, said: C 6 attributes of the captions' own pictures, and which of them the captions mention.
        others: N 6 attributes of the pictures. An attribute that does not apply (-1) agrees with nothing mentioned;
            without a noun, animals are "an animal" and all else is "a thing".
    """
    agree = (others[:, None] == known[None]) | ~said[None]
    kin = (others[:, None, 0] >= FIRST_ANIMAL) == (known[None, :, 0] >= FIRST_ANIMAL)
    return agree.all(2) & kin
