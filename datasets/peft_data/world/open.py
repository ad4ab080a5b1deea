"""Few-shot sets with open-vocabulary class names: 16 base classes and 16 new ones each, drawn offline.

Whatever the name does not say varies: size, place, colours, texture, surroundings, light. Hues are those of the tasks, and
each set is seen in a way of its own that pretraining never shows (`shifts`): zero-shot loses by it, and a few pictures tell
what is different. Every base class is a combination of known words that
pretraining shows. Of the new ones, the first are such too, the next are combinations of known words that pretraining
leaves out (`phrases.new_combination`), and the last hold a word that it leaves out (`phrases.HELD_BACK`); `kind_of`
tells which. `things` are single words, so its new classes are known words and words left out.
"""

from __future__ import annotations

import torch

from .draw import Draw
from .named import COLOURS, COLUMNS, GROUNDS, NOUNS, draw_named
from .phrases import HELD_BACK, PATTERNED, WORDS, held_back, scene_name
from .scene import FLAT_GROUNDS
from .shifts import shifted

SIZE = 40
BLOCK = 256
SPLITS = {"train": 48, "val": 16, "test": 48}
"""Pictures a class."""

_OBJECTS = (
    "red triangle, red ring, yellow star, yellow heart, green ring, green triangle, blue star, blue cube, purple heart, "
    "purple cube, orange triangle, orange star, black ring, black heart, white cube, white gear | "
    "red cube, green star, pink ring, grey heart | "
    "red star, red heart, yellow triangle, yellow ring, green cube, purple ring, white triangle, pink cube | "
    "red wedge, blue rosette, teal star, teal ring"
)
_PATTERNED = (
    "striped star, striped ring, striped cube, chequered heart, chequered cube, chequered square, dotted star, "
    "dotted ring, dotted square, zigzag heart, zigzag ring, zigzag square, bricked star, bricked cube, cracked heart, "
    "cracked circle | "
    "striped heart, dotted heart, chequered star, scaly square | "
    "striped square, chequered ring, dotted cube, zigzag cube, bricked ring, cracked ring, scaly cube, ringed star | "
    "meshed star, meshed cube, striped wedge, dotted rosette"
)
_THINGS = (
    "house, fish, sailboat, cup, key, chair, mushroom, cat, giraffe, pig, rabbit, ostrich, star, ring, cube, arrow | "
    "fir, car, bottle, cat head, crocodile, mouse, dachshund, heart, gear, bell, hourglass | | "
    "wedge, rosette, hammer, camel, ant"
)
_SCENES = (
    "fish/hills, fish/city, house/forest, house/mountains, sailboat/city, sailboat/sea, chair/forest, chair/room, "
    "cat/city, cat/forest, giraffe/mountains, giraffe/hills, pig/room, pig/sea, mushroom/mountains, mushroom/cave | "
    "fish/sea, house/hills, cat/room, giraffe/forest | "
    "fish/mountains, house/sea, sailboat/hills, chair/city, cat/village, giraffe/city, pig/forest, mushroom/room | "
    "fish/valley, cat/valley, camel/hills, hammer/room"
)
_KINDS = ("base", "known", "new combination", "new word")


def _listed(text: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    parts = [[name.strip() for name in part.split(",") if name.strip()] for part in text.split("|")]
    names = tuple(scene_name(*name.split("/")) if "/" in name else name for part in parts for name in part)
    return names, tuple(kind for kind, part in zip(_KINDS, parts, strict=True) for _ in part)


SETS = {
    "objects": _listed(_OBJECTS),
    "patterned": _listed(_PATTERNED),
    "things": _listed(_THINGS),
    "scenes": _listed(_SCENES),
}
"""Name → class names, base classes first, and what each class is to pretraining."""


def kind_of(task: str) -> tuple[str, ...]:
    """What each class of a set is to pretraining: "base", "known", "new combination" or "new word"."""
    return SETS[task][1]


def attributes_of(name: str) -> torch.Tensor:
    """A class name as a row of attributes, int64 6 (`named.COLUMNS`), -1 where it says nothing."""
    row = torch.full((len(COLUMNS),), -1)
    for index in range(len(FLAT_GROUNDS), len(GROUNDS)):
        start = scene_name("", GROUNDS[index])
        if name.endswith(start):
            row[COLUMNS.index("ground")], name = index, name.removesuffix(start)
    first, _, rest = name.partition(" ")
    if first in COLOURS or first in PATTERNED:
        column = "colour" if first in COLOURS else "texture"
        row[COLUMNS.index(column)], name = WORDS[column].index(first), rest
    row[0] = NOUNS.index(name)
    return row


def pretraining_knows(name: str) -> bool:
    """Whether pretraining shows what a class name says and says it."""
    return not bool(held_back(attributes_of(name)[None])[0])


def new_words(name: str) -> bool:
    """Whether a class name has a word that pretraining never says."""
    row = attributes_of(name)
    return any(
        row[COLUMNS.index(column)] == WORDS[column].index(word) for column, words in HELD_BACK.items() for word in words
    )


def draw_set(task: str, split: str, each: int, seed: int = 0, size: int = SIZE) -> tuple[torch.Tensor, torch.Tensor]:
    """Draws `each` pictures a class of a set without the cache.

    Args:
        task: a key of SETS.
        split: any word; pictures of different splits have nothing in common.
        each: pictures a class.
        seed: another seed gives other pictures of the same classes.
        size: height and width S in pixels.

    Returns:
        pictures uint8 N 3 S S and labels int64 N, classes in turn.
    """
    names = SETS[task][0]
    rows = torch.stack([attributes_of(name) for name in names])
    n = each * len(names)
    labels, pictures = torch.arange(n) % len(names), []
    for block, chosen in enumerate(labels.split(BLOCK)):
        draw = Draw("open", task, split, seed, block)
        known = rows[chosen]
        ground = COLUMNS.index("ground")
        free = draw.choose(len(known), among=FLAT_GROUNDS)
        known[:, ground] = torch.where(known[:, ground] < 0, free, known[:, ground])
        pictures.append(shifted(task, draw, draw_named(draw, known, size)[0]))
    return torch.cat(pictures), labels
