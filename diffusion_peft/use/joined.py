"""Adapters on a base, made one LoRA file."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import nn

from diffusion_peft.files.layers import Layer, layers_of
from diffusion_peft.files.whole import changes_of, low_rank
from diffusion_peft.formats import export_layers
from diffusion_peft.use.run import Run
from peft_core.attach import pick
from peft_core.errors import PeftError
from peft_core.jobs.runs.process import tell

Make = Callable[[str, list[dict[str, Layer]], list[float]], dict[str, Layer]]
"""(part, each adapter's layers by path, their weights) → the layers of all of them."""


def join_into(run: Run, weights: Sequence[float | str], into: str, format: str, dtype: str, make: Make) -> Path:
    """Writes the file.

    Args:
        run: the adapters on their base, at scale 1.
        weights: one an adapter.

    Raises:
        PeftError: an adapter without weight changes, or whose change LoRA cannot say.
    """
    wrong = next((weight for weight in weights if isinstance(weight, str)), None)
    if wrong is not None:
        raise PeftError(f"{wrong} names a token, and a LoRA file holds none: leave the embedding out.")
    for name in run.names:
        if not any(own_names(model, name) for model in run.models.values()):
            raise PeftError(f"{name.partition('_')[2]} changes no weights: leave it out.")
        if rest := [own for own in own_names(run.unet, name) if pick(run.unet, own)[0].method.grafts is None]:
            raise PeftError(
                f"{name.partition('_')[2]} trained {rest[0].partition('__')[2]} besides, which a LoRA file cannot hold: give "
                "--out in place of --into, a folder for the whole pipeline."
            )
    sets = {part: [layers_on(model, name) for name in run.names] for part, model in run.models.items()}
    numbers = [float(weight) for weight in weights]
    layers = {part: made for part, found in sets.items() if any(found) and (made := make(part, found, numbers))}
    if run.tokens:
        tell(f"note: the new tokens {', '.join(run.tokens)} are not in it: `export --format embeddings` writes them.")
    return export_layers(run.models, layers, into, format, getattr(torch, dtype))


def weighed(layers: dict[str, Layer], weight: float) -> dict[str, Layer]:
    return {path: dataclasses.replace(layer, scale=layer.scale * weight) for path, layer in layers.items()}


def own_names(model: nn.Module, prefix: str) -> list[str]:
    """The adaptations of weights of one adapter."""
    record = model.__dict__.get("_peft_record")
    names = list(record.adaptations) if record else []
    return [name for name in names if name.startswith(f"{prefix}__") and not name.endswith("__tokens")]


def layers_on(model: nn.Module, prefix: str) -> dict[str, Layer]:
    """An adapter's LoRA layers, of other methods by what they do to the weights."""
    found: dict[str, Layer] = {}
    for name in own_names(model, prefix):
        try:
            own = layers_of(model, name)
        except PeftError:
            own = {}
        if not own or {layer.kind for layer in own.values()} != {"lora"} or any(layer.normed for layer in own.values()):
            form = low_rank(changes_of(model, name))
            own = form.layers
            if form.skipped:
                tell(f"note: {name}: its changes of biases and norms are not in the file ({form.skipped[0]} …)")
        found |= own
    return found
