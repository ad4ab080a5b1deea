"""Class names as token ids, with places for learnt context: any tokenizer of open_clip, any template."""

import shlex
from collections import Counter
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
    """Class names as they are given; a name may stand there twice (ImageNet's list has two such pairs): columns are told
    apart by their place.

    Raises:
        PeftError: a single text, none, one that is no text or empty.
    """
    if isinstance(names, str):
        raise PeftError(f'class_names is the single text "{names}": pass a list of names.')
    try:
        found = tuple(names)
    except TypeError:
        raise PeftError(f"class_names is {names!r}: pass a list of names.") from None
    if not found:
        raise PeftError("class_names is empty: name at least one class.")
    for number, name in enumerate(found, start=1):
        if not isinstance(name, str):
            raise PeftError(f"class name number {number} is {name!r}, no text: give every class a name.")
        if not spoken(name):
            raise PeftError(f"class name number {number} is empty: give every class a name.")
    return tuple(str(name) for name in found)


def spoken(name: str) -> str:
    """A class name as texts say it: underscores are spaces."""
    return " ".join(name.replace("_", " ").split())


def asked_for(names: Sequence[str], alone: bool = False) -> tuple[str, ...]:
    """Class names that a user types, rather than a data set's.

    Args:
        alone: whether one name may stand alone, as a label that a picture has or has not.

    Raises:
        PeftError: one alone, one that stands there twice, or several in one, with commas.
    """
    names = checked_names(names)
    twice = next((name for i, name in enumerate(names) if spoken(name) in map(spoken, names[:i])), None)
    if twice is not None:
        raise PeftError(f'class name "{spoken(twice)}" is there twice: leave one out.')
    first, *others = names
    if others:
        return names
    if "," in first:
        parts = " ".join(shlex.quote(part.strip()) for part in first.split(",") if part.strip())
        raise PeftError(f'"{first}" is a single class name: separate several by spaces, --classes {parts}.')
    if alone:
        return names
    raise PeftError(f'with "{first}" alone every picture is one: name a second class, such as "something else".')


def told_apart(names: Sequence[str]) -> tuple[str, ...]:
    """The names, with a number behind those that stand there before: missile, missile (2)."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return tuple(found)


def places_among(names: Sequence[str], known: Sequence[str]) -> tuple[int, ...] | None:
    """Where `names` stand among `known` ones, the second of a name that stands twice at its second place; None where one is
    not among them."""
    places = {name: place for place, name in enumerate(told_apart([spoken(name) for name in known]))}
    wanted = told_apart([spoken(name) for name in names])
    return tuple(places[name] for name in wanted) if set(wanted) <= set(places) else None


def alike(tokenizer: Tokenizer, names: Sequence[str]) -> list[tuple[str, ...]]:
    """Groups of class names that are the same tokens, which no model can tell apart."""
    rows, _ = token_rows(tokenizer, [spoken(name) for name in names])
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, row in zip(names, rows, strict=True):
        groups.setdefault(tuple(row), []).append(name)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def checked_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, if it can be called as texts are tokenised here.

    Raises:
        PeftError: it takes no `context_length`, or gives no rows of ids.
    """
    try:
        rows = tokenizer(["a", "b"], context_length=_ROOM)
    except TypeError as error:
        found: object = error
    else:
        if isinstance(rows, Tensor) and rows.shape == (2, _ROOM) and not rows.is_floating_point():
            return tokenizer
        found = f"it gives {type(rows).__name__}{f' {tuple(rows.shape)}' if isinstance(rows, Tensor) else ''}"
    raise PeftError(
        f"the tokenizer must be called as tokenizer(texts, context_length=n) and give ids N n ({found}): pass "
        "open_clip.get_tokenizer(name), or a function that does so."
    )


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
        PeftError: names that are empty or too long, a template without {}, an unknown position.
    """
    names = checked_names(names)
    texts = [spoken(name) for name in names]
    if template.count("{}") != 1:
        raise PeftError(f'template "{template}" must hold {{}} once, where the class name goes.')
    if position not in POSITIONS:
        raise PeftError(f'position "{position}" is none of {", ".join(POSITIONS)}.')
    if position != "end" and not template.startswith("{}"):
        raise PeftError(f'position "{position}" splits the text behind the name, so the template must start with {{}}.')
    rows, pad = token_rows(tokenizer, [template.replace("{}", text) for text in texts])
    front, back = specials(tokenizer)
    lengths = [0] * len(names)
    if position != "end":
        alone, _ = token_rows(tokenizer, texts)
        lengths = [len(row) - front - back for row in alone]
    length = min(tower.context_length, getattr(tokenizer, "context_length", None) or tower.context_length)
    _check_room(names, rows, context, length)
    filler = _filler(tokenizer, pad) if context else pad
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


def _filler(tokenizer: Tokenizer, pad: int) -> int:
    """The id of an ordinary word, to stand where context vectors go: never one that pools."""
    return next(iter(text_ids(tokenizer, "a")), pad)


def _check_room(names: Sequence[str], rows: list[list[int]], context: int, length: int) -> None:
    over = [len(row) + context - length for row in rows]
    worst = max(range(len(over)), key=over.__getitem__)
    if over[worst] > 0:
        more = sum(n > 0 for n in over) - 1
        others = f" (and {more} more)" if more else ""
        with_context = f" beside {context} context tokens" if context else ""
        raise PeftError(
            f'class name "{spoken(names[worst])}"{others} is {over[worst]} tokens too long for a text of '
            f"{length}{with_context}: shorten it{' or use fewer context tokens' if context else ''}."
        )
