"""Class names as token ids, with places for learnt context: any tokenizer of open_clip, any template."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clip_peft.text.tower import TextTower
from peft_core.errors import PeftError
from peft_core.jobs.hub.backbone import Tokenizer

POSITIONS = ("end", "middle", "front")
_ROOM = 1024  # tokens asked of the tokenizer, so that a text which is too long shows by how much


@dataclass(frozen=True, eq=False)
class Prompts:
    """One prompt a class: token ids C L, padded as the tokenizer pads.

    slots: C L, m where the m-th context vector stands in place of a token, -1 elsewhere.
    pooled: C, the index of the token whose state becomes the class feature.
    context: M, the number of context vectors.
    """

    names: tuple[str, ...]
    ids: Tensor
    slots: Tensor
    pooled: Tensor
    context: int

    def __len__(self) -> int:
        return len(self.names)


def checked_names(names: Sequence[str]) -> tuple[str, ...]:
    """Class names with underscores as spaces.

    Raises:
        PeftError: none, an empty one, or one that stands there twice.
    """
    if isinstance(names, str):
        raise PeftError(f'class_names is the single text "{names}": pass a list of names.')
    clean = tuple(" ".join(name.replace("_", " ").split()) for name in names)
    if not clean:
        raise PeftError("class_names is empty: name at least one class.")
    if "" in clean:
        raise PeftError(f"class name number {clean.index('') + 1} is empty: give every class a name.")
    if len(set(clean)) < len(clean):
        twice = next(name for i, name in enumerate(clean) if name in clean[:i])
        raise PeftError(f'class name "{twice}" is there twice: merge the classes or give them different names.')
    return clean


def token_rows(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[list[list[int]], int]:
    """Each text's ids without padding, and the padding's id."""
    rows: list[list[int]] = []
    pad = int(tokenizer([""], context_length=_ROOM)[0, -1])
    for start in range(0, len(texts), 256):
        for row in tokenizer(list(texts[start : start + 256]), context_length=_ROOM).tolist():
            stop = len(row)
            while stop and row[stop - 1] == pad:
                stop -= 1
            rows.append(row[:stop])
    return rows, pad


def specials(tokenizer: Tokenizer) -> tuple[int, int]:
    """How many tokens the tokenizer puts before and behind every text (1 and 1 for CLIP, 0 and 0 for SigLIP)."""
    (nothing, word), _ = token_rows(tokenizer, ["", "a"])
    front = next((i for i, (a, b) in enumerate(zip(nothing, word, strict=False)) if a != b), len(nothing))
    return front, len(nothing) - front


def text_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """The text's own tokens, without those the tokenizer puts around it."""
    (row,), _ = token_rows(tokenizer, [text])
    front, back = specials(tokenizer)
    return row[front : len(row) - back]


def make_prompts(tower: TextTower, tokenizer: Tokenizer, names: Sequence[str], template: str = "{}.", context: int = 0,
                 position: str = "end") -> Prompts:  # fmt: skip
    """Prompts [start][context][text . end] (`position` "end"), [start][name][context][. end] ("front"), or with half of
    the context on each side of the name ("middle"). `template` makes the text from the name.

    Raises:
        PeftError: names that are empty, doubled or too long, a template without {}, an unknown position.
    """
    names = checked_names(names)
    if template.count("{}") != 1:
        raise PeftError(f'template "{template}" must hold {{}} once, where the class name goes.')
    if position not in POSITIONS:
        raise PeftError(f'position "{position}" is none of {", ".join(POSITIONS)}.')
    if position != "end" and not template.startswith("{}"):
        raise PeftError(f'position "{position}" splits the text behind the name, so the template must start with {{}}.')
    rows, pad = token_rows(tokenizer, [template.format(name) for name in names])
    front, back = specials(tokenizer)
    lengths = [0] * len(names)
    if position != "end":
        alone, _ = token_rows(tokenizer, names)
        lengths = [len(row) - front - back for row in alone]
    length = min(tower.context_length, getattr(tokenizer, "context_length", None) or tower.context_length)
    _check_room(names, rows, context, length)
    filler = rows[0][front]
    before = {"end": 0, "middle": context // 2, "front": 0}[position]
    ids = torch.full((len(names), length), pad)
    slots = torch.full((len(names), length), -1)
    for i, (row, name_length) in enumerate(zip(rows, lengths, strict=True)):
        lead = context if position == "end" else before
        order: list[tuple[int, int]] = [(token, -1) for token in row[:front]]
        order += [(filler, m) for m in range(lead)]
        order += [(token, -1) for token in row[front : front + name_length]]
        order += [(filler, m) for m in range(lead, context)]
        order += [(token, -1) for token in row[front + name_length :]]
        ids[i, : len(order)] = torch.tensor([token for token, _ in order])
        slots[i, : len(order)] = torch.tensor([slot for _, slot in order])
    if int(ids.max()) >= tower.vocabulary:
        raise PeftError(
            f"the tokenizer gives token {int(ids.max())}, but the text tower knows {tower.vocabulary}: pass the model's own "
            "tokenizer (open_clip.get_tokenizer)."
        )
    return Prompts(names, ids, slots, tower.pooled(ids), context)


def _check_room(names: Sequence[str], rows: list[list[int]], context: int, length: int) -> None:
    over = {name: len(row) + context - length for name, row in zip(names, rows, strict=True)}
    worst = max(over, key=lambda name: over[name])
    if over[worst] > 0:
        more = sum(n > 0 for n in over.values()) - 1
        others = f" (and {more} more)" if more else ""
        with_context = f" beside {context} context tokens" if context else ""
        raise PeftError(
            f'class name "{worst}"{others} is {over[worst]} tokens too long for a text of {length}{with_context}: shorten it'
            f"{' or use fewer context tokens' if context else ''}."
        )
