"""Prompts: tokens of a base, new ones among them, and their embeddings as the stock pipelines make them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from peft_core.errors import PeftError

if TYPE_CHECKING:
    from diffusion_peft.base.bases import Base


def count_tokens(tokenizer: Any, text: str) -> int:
    """How many tokens a text has, its start and end included."""
    return len(tokenizer(text, truncation=False, verbose=False).input_ids)


def check_length(base: Base, text: str, what: str) -> None:
    """Raises PeftError: the text has more tokens than the text encoder takes."""
    for tokenizer, most in longest(base):
        count = count_tokens(tokenizer, expand(tokenizer, text))
        if count > most:
            raise PeftError(
                f"{what} has {count} tokens, start and end included, but the text encoder takes {most}: shorten it."
            )


def longest(base: Base) -> list[tuple[Any, int]]:
    """The tokenizers that count, with how many tokens a prompt may have of each."""
    found = [(base.part(name), most) for name, most in base.family.reads if base.has(name)]
    found = found or [(tokenizer, None) for tokenizer in base.tokenizers]
    return [(tokenizer, most or tokenizer.model_max_length) for tokenizer, most in found]


def expand(tokenizer: Any, text: str) -> str:
    """Each token of several vectors in full: `<toy>` → `<toy> <toy>_1`, as diffusers writes it; in any case of its letters, as
    tokenizers find it."""
    added = tokenizer.get_added_vocab()
    several: dict[str, str] = {}
    for token in added:
        number, full = 1, [token]
        while f"{token}_{number}" in added:
            full.append(f"{token}_{number}")
            number += 1
        if number > 1:
            several[token.lower()] = " ".join(full)
    if not several:
        return text
    names = "|".join(map(re.escape, sorted(several, key=len, reverse=True)))
    return re.sub(rf"(?:{names})(?!_\d)", lambda found: several[found[0].lower()], text, flags=re.IGNORECASE)


def has_token(text: str, token: str) -> bool:
    """Whether a text names a token, in any case of its letters."""
    return token.lower() in text.lower()


def ids_of(base: Base, texts: Sequence[str]) -> list[Tensor]:
    """Token ids N 77 of each of the base's tokenizers, cut off at the end."""
    found = []
    for tokenizer in base.tokenizers:
        whole = [expand(tokenizer, text) for text in texts]
        length = tokenizer.model_max_length
        ids = tokenizer(whole, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        found.append(ids)
    return found


def encode(encoders: Sequence[Any], ids: Sequence[Tensor], clip_skip: int = 0) -> tuple[Tensor, Tensor | None]:
    """Embeddings B 77 D, and SDXL's pooled ones B P: what the stock pipelines give the UNet.

    Args:
        encoders: all of a base's; two are SDXL's.
        clip_skip: layers left out at the end (of those that the stock pipeline uses).
    """
    hidden, pooled, sdxl = [], None, len(encoders) > 1
    for encoder, own in zip(encoders, ids, strict=True):
        if not sdxl and not clip_skip:
            return encoder(own).last_hidden_state, None
        out = encoder(own, output_hidden_states=True)
        if not sdxl:
            inner = getattr(encoder, "text_model", encoder)
            return inner.final_layer_norm(out.hidden_states[-1 - clip_skip]), None
        hidden.append(out.hidden_states[-2 - clip_skip])
        pooled = getattr(out, "text_embeds", None)
    return torch.cat(hidden, -1), pooled


# ---- new tokens ----------------------------------------------------------------------------------------------------


def add_token(base: Base, token: str, vectors: int) -> list[int]:
    """Adds a token, and `token_1` … for more vectors, to the tokenizers; the first one's id in each.

    Raises:
        PeftError: it exists already, or no ids are left where the table ends.
    """
    names = [token, *(f"{token}_{n}" for n in range(1, vectors))]
    firsts = []
    for tokenizer in base.tokenizers:
        known = {word.lower() for word in tokenizer.get_vocab()}
        for name in map(str.lower, names):  # tokenizers do not tell them apart
            if name in known or f"{name}</w>" in known:
                raise PeftError(f'the placeholder "{name}" is a word of the vocabulary already: choose another one.')
        if not token.strip() or " " in token:
            raise PeftError(f'the placeholder "{token}" must be one word without spaces, e.g. "<toy>".')
        tokenizer.add_tokens(names)
        firsts.append(tokenizer.convert_tokens_to_ids(token))
    return firsts


def initial_ids(tokenizer: Any, word: str, vectors: int) -> list[int]:
    """The tokens that the vectors start as: the word's own, repeated to as many.

    Raises:
        PeftError: the word has more tokens than there are vectors.
    """
    ids = tokenizer(word, add_special_tokens=False).input_ids
    if not ids or len(ids) > vectors:
        raise PeftError(
            f'the initializer "{word}" has {len(ids)} tokens but the placeholder has {vectors} vectors: choose a word of '
            f"one token, or --vectors {max(1, len(ids))}."
        )
    return [ids[number % len(ids)] for number in range(vectors)]


def fix_pooling(encoder: Any, tokenizer: Any) -> None:
    """Old configurations name 2 as the end of a text, and the model then takes the highest id for it: a new token."""
    inner = getattr(encoder, "text_model", encoder)
    if getattr(inner, "eos_token_id", None) == 2:
        inner.eos_token_id = tokenizer.eos_token_id
        encoder.config.eos_token_id = tokenizer.eos_token_id
