"""New tokens in use: ids in a base's tokenizers, vectors in its text encoders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from diffusion_peft.base.texts import add_token, fix_pooling
from diffusion_peft.files.embeddings import read_embedding
from peft_core import PeftError, adapt
from peft_core.attach import grafts_named

if TYPE_CHECKING:
    from diffusion_peft.use.run import Run


def place_tokens(run: Run, part: str, tokens: dict[str, int], name: str) -> None:
    """Gives a run's tokens ids in this base's tokenizers, and their vectors the same ones."""
    number = run.base.text_parts.index(part)
    if number == 0:
        for token, vectors in tokens.items():
            if token in run.tokens:
                raise PeftError(
                    f"two of these adapters have the token {token}: train one of them with another placeholder."
                )
            add_token(run.base, token, vectors)
            run.tokens[token] = vectors
    encoder, tokenizer = run.base.text_encoders[number], run.base.tokenizers[number]
    fix_pooling(encoder, tokenizer)
    for _, _, graft in grafts_named(encoder, name):
        graft.first = tokenizer.convert_tokens_to_ids(next(iter(tokens)))  # type: ignore[assignment]


def add_embedding(run: Run, file: Path, allow_pickle: bool = False) -> None:
    """Adds an embedding file's token to the base.

    Raises:
        PeftError: vectors of another width than this base's text encoders have.
    """
    token, tensors = read_embedding(file, allow_pickle=allow_pickle)
    widths = [encoder.config.hidden_size for encoder in run.base.text_encoders]
    if [t.shape[1] for t in tensors] != widths:
        raise PeftError(
            f"{file} has vectors of width {', '.join(str(t.shape[1]) for t in tensors)}, the text encoders of "
            f"{run.base.name} take {', '.join(map(str, widths))}: it is for another base."
        )
    firsts = add_token(run.base, token, len(tensors[0]))
    for number, (encoder, vectors) in enumerate(zip(run.base.text_encoders, tensors, strict=True)):
        fix_pooling(encoder, run.base.tokenizers[number])
        name = f"e{len(run.tokens)}__tokens"
        adapt(encoder, "textual_inversion", name=name, first=firsts[number], initial=[0] * len(vectors))
        for _, _, graft in grafts_named(encoder, name):
            with torch.no_grad():
                graft.vectors.copy_(vectors)  # type: ignore[union-attr,operator]
        encoder.requires_grad_(False).eval()
    run.tokens[token] = len(tensors[0])
