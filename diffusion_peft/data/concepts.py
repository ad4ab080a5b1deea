"""What a run is to learn: one concept from the options of `fit`, or several from a list file."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from diffusion_peft.base.bases import Base
from diffusion_peft.base.texts import add_token, check_length, count_tokens, expand, has_token, initial_ids, longest
from diffusion_peft.data.films import open_films
from diffusion_peft.data.masks import BESIDE
from diffusion_peft.data.pictures import Picture, open_pictures
from peft_core.errors import PeftError, nearest
from peft_core.files import read_json
from peft_core.jobs.runs.process import tell

TEMPLATES = (
    "a photo of {}", "a picture of {}", "a close-up photo of {}", "a cropped photo of {}", "a bright photo of {}",
    "a dark photo of {}", "a good photo of {}", "a rendition of {}", "one {}", "the {}",
)  # fmt: skip
"""Prompts for a placeholder where none is given."""


@dataclass(frozen=True)
class Concept:
    """Pictures and the words for them.

    Args:
        data: a folder, or a drawn subject.
        prompt: what every picture is called; else captions beside the pictures, else `TEMPLATES` of the placeholder.
        class_prompt: what its class is called, for prior preservation.
        prior: folder of prior pictures.
        placeholder: a new token.
        initializer: the word that the token starts as.
        masks: where the pictures' masks are: beside, alpha, off, or a folder.
    """

    data: str
    prompt: str | None = None
    class_prompt: str | None = None
    prior: str | None = None
    placeholder: str | None = None
    initializer: str | None = None
    masks: str | None = None

    def __post_init__(self) -> None:
        for name in ("prompt", "class_prompt", "placeholder", "initializer"):
            words = getattr(self, name)
            if words is not None and not words.strip():
                raise PeftError(f"the {name} of {self.data} is empty: say its words, or leave it out.")


def read_concepts(settings: dict[str, Any]) -> list[Concept]:
    """The concepts of a run: of the list in the file `--data concepts.json`, else of the options.

    Raises:
        PeftError: a list that is none, or has unknown or missing entries.
    """
    names = [field.name for field in fields(Concept)]
    path = Path(settings["data"]).expanduser()
    if path.suffix != ".json":
        given: dict[str, Any] = {name: settings.get(name) for name in names}
        return [Concept(**given)]
    rows = read_json(path, "give a list of concepts")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) and row.get("data") for row in rows):
        raise PeftError(f'{path} must be a list like [{{"data": "my_dog", "prompt": "a photo of <dog>"}}].')
    for row in rows:
        for key, value in row.items():
            if key not in names:
                raise PeftError(f'unknown entry "{key}" in {path}{nearest(key, names)} (known: {", ".join(names)}).')
            if value is not None and not isinstance(value, str):
                raise PeftError(f'the entry "{key}" in {path} must be words, not {value}.')
    for row in rows:
        beside = [key for key in ("data", "prior", "masks") if row.get(key) and _is_beside(path, row[key])]
        row |= {"masks": row.get("masks", settings.get("masks"))} | {key: str(path.parent / row[key]) for key in beside}
    return [Concept(**row) for row in rows]


def _is_beside(file: Path, name: str) -> bool:
    return not Path(name).is_absolute() and (file.parent / name).exists()


@dataclass(frozen=True)
class NewToken:
    """A placeholder with its first id in each tokenizer, and the ids that its vectors start as."""

    name: str
    vectors: int
    firsts: list[int]
    initial: list[list[int]]


def add_tokens(base: Base, concepts: list[Concept], vectors: int) -> list[NewToken]:
    """The concepts' placeholders as tokens of the base's tokenizers.

    Raises:
        PeftError: a word of the vocabulary, a placeholder without initializer, a prompt without its placeholder.
    """
    found: list[NewToken] = []
    for concept in concepts:
        if concept.placeholder is None:
            if concept.initializer is not None:
                raise PeftError(
                    '--initializer says what a new token starts as: give the token with --placeholder "<toy>".'
                )
            continue
        if concept.initializer is None:
            raise PeftError(
                f"{concept.placeholder} needs --initializer WORD: a word of the vocabulary that it starts as."
            )
        if concept.prompt is not None and not has_token(concept.prompt, concept.placeholder):
            raise PeftError(f'the prompt "{concept.prompt}" does not have the placeholder {concept.placeholder} in it.')
        initial = [initial_ids(tokenizer, concept.initializer, vectors) for tokenizer in base.tokenizers]
        found.append(NewToken(concept.placeholder, vectors, add_token(base, concept.placeholder, vectors), initial))
    return found


def captioned(
    base: Base, concept: Concept, caption_prefix: str = "", frames: int = 1
) -> tuple[list[Picture], list[tuple[str, ...]]]:
    """A concept's pictures, or its clips of so many frames, and for each the texts that it may get.

    Raises:
        PeftError: pictures without any words, a prompt of too many tokens.
    """
    pictures = open_pictures(concept.data, concept.masks or BESIDE) if frames == 1 else open_films(concept.data, frames)
    if concept.prompt is not None:
        check_length(base, concept.prompt, "the prompt")
        return pictures, [(concept.prompt,)] * len(pictures)
    if concept.placeholder is not None and not any(p.caption for p in pictures):
        return pictures, [tuple(text.format(concept.placeholder) for text in TEMPLATES)] * len(pictures)
    silent = [p.name for p in pictures if not p.caption]
    if silent:
        raise PeftError(
            f"{len(silent)} of {len(pictures)} pictures of {concept.data} have no caption (the first is {silent[0]}): give "
            "--prompt, or a .txt file beside each, or metadata.jsonl."
        )
    texts = [caption_prefix + str(p.caption) for p in pictures]
    if concept.placeholder is not None and (
        without := [t for t in texts if not has_token(t, str(concept.placeholder))]
    ):
        raise PeftError(
            f"{len(without)} captions of {concept.data} do not have the placeholder {concept.placeholder} in them (the "
            f'first is "{without[0]}").'
        )
    tokenizer, most = longest(base)[0]
    long = [t for t in texts if count_tokens(tokenizer, expand(tokenizer, t)) > most]
    if long:
        tell(
            f"note: {len(long)} of {len(texts)} captions have more than {most} tokens and are cut off "
            f'(the first is "{long[0][:60]}…")'
        )
    return pictures, [(text,) for text in texts]
