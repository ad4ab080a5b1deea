"""New tokens in use: ids in a base's tokenizers, vectors in its text encoders."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffusion_peft.base.bases import Base
from diffusion_peft.base.texts import add_token, fix_pooling
from peft_core.adaptation import adapt
from peft_core.attach import grafts_named
from peft_core.errors import PeftError
from peft_core.registry import facts_of, method_files


def place_tokens(base: Base, known: dict[str, int], part: str, tokens: dict[str, int], name: str) -> None:
    """Gives tokens, whose vectors are the adaptation `name` of a text encoder, ids in this base's tokenizers, and their
    vectors the same ones; `known`, the base's tokens and their numbers of vectors, grows by them."""
    number = base.text_parts.index(part)
    if number == 0:
        for token, vectors in tokens.items():
            _add(base, known, token, vectors)
    encoder, tokenizer = base.text_encoders[number], base.tokenizers[number]
    fix_pooling(encoder, tokenizer)
    for _, _, graft in grafts_named(encoder, name):
        graft.first = tokenizer.convert_tokens_to_ids(next(iter(tokens)))  # type: ignore[assignment]


def add_vectors(base: Base, known: dict[str, int], token: str, tensors: Sequence[Tensor], origin: str) -> None:
    """Adds a token with these vectors n D, one tensor a text encoder, to the base and to `known`.

    Raises:
        PeftError: vectors of another width than this base's text encoders have, a token that is a word already.
    """
    widths = [encoder.config.hidden_size for encoder in base.text_encoders]
    if [t.shape[1] for t in tensors] != widths:
        raise PeftError(
            f"{origin} has vectors of width {', '.join(str(t.shape[1]) for t in tensors)}, the text encoders of "
            f"{base.name} take {', '.join(map(str, widths))}: it is for another base."
        )
    name = f"e{len(known)}__tokens"
    firsts = _add(base, known, token, len(tensors[0]))
    for number, (encoder, vectors) in enumerate(zip(base.text_encoders, tensors, strict=True)):
        fix_pooling(encoder, base.tokenizers[number])
        install_words(encoder, name, firsts[number], [0] * len(vectors))
        for _, _, graft in grafts_named(encoder, name):
            with torch.no_grad():
                graft.vectors.copy_(vectors)  # type: ignore[union-attr,operator]
        encoder.requires_grad_(False).eval()


def install_words(encoder: nn.Module, name: str, first: int, initial: Sequence[int]) -> None:
    """Vectors of new tokens beside a text encoder's table, as the adaptation `name`.

    Args:
        first: id of the first one. initial: the ids that they start as.
    """
    adapt(encoder, method_of_words(), name=name, first=first, initial=initial)


@functools.cache
def method_of_words() -> str:
    """The method that says it trains the vectors of new tokens."""
    own = (name for name, place in method_files().items() if place.startswith("diffusion_peft."))
    return next(name for name in own if "words" in facts_of(name).get("needs", ()))


def _add(base: Base, known: dict[str, int], token: str, vectors: int) -> list[int]:
    if token in known:
        raise PeftError(f"two of these adapters have the token {token}: train one of them with another placeholder.")
    firsts = add_token(base, token, vectors)
    known[token] = vectors
    return firsts
