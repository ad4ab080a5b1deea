"""A run's adapters by turns, by layers, or each by itself (`drawing.composing`)."""

from __future__ import annotations

from diffusion_peft.drawing.composing import Adapter, Composite, Composition, Halves, KLoRA, Switch, Way
from diffusion_peft.files.halves import HALVES, check_halves, half_of
from diffusion_peft.files.layers import Layer
from diffusion_peft.use.joined import layers_on, own_names, weighed
from diffusion_peft.use.run import Run
from peft_core import set_scale
from peft_core.attach import pick
from peft_core.errors import PeftError


def composition_of(run: Run, way: Way, steps: int, every: int) -> Composition:
    """How they act.

    Args:
        steps: of the denoiser.

    Raises:
        PeftError: too few or too many adapters, a base or controls with which they cannot act so.
    """
    model, controls = run.unet, {use.name for use in run.controls}
    names = {name: [own for own in own_names(model, name) if own not in controls] for name in run.names}
    names = {name: own for name, own in names.items() if own}
    two = way not in ("switch", "composite")
    if len(names) < 2 or (two and len(names) != 2):
        which = "two adapters, of a subject and of a style," if two else "two adapters or more"
        raise PeftError(f"--how {way} takes {which} that change the {run.base.denoiser}, and here are {len(names)}.")
    if way == "composite" and controls:
        raise PeftError(
            "--how composite calls the base once an adapter, which a control would count: leave --control out."
        )
    adapters = [Adapter({own: pick(model, own)[0].scale for own in found}) for found in names.values()]
    if way == "switch":
        return Switch(model, adapters, every)
    if way == "composite":
        return Composite(model, adapters)
    if way == "b_lora":
        check_halves(run.base.kind, run.base.name)
    layers = [layers_at_scale(run, name, adapter) for name, adapter in zip(names, adapters, strict=True)]
    if way != "b_lora":
        return KLoRA(model, adapters, layers, way, steps)
    for half, own, name in zip(HALVES, layers, names, strict=True):
        half_of(own, half, name.partition("_")[2])
    return Halves(model, adapters, layers, under=tuple(HALVES.values()))


def layers_at_scale(run: Run, name: str, adapter: Adapter) -> dict[str, Layer]:
    """What an adapter does to the weights at its scale, as LoRA layers."""
    scales = set(adapter.scales.values())
    for own in adapter.scales:
        set_scale(run.unet, 1.0, own)
    found = layers_on(run.unet, name)
    adapter.let(run.unet, True)
    return weighed(found, scales.pop()) if len(scales) == 1 else found
