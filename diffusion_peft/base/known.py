"""What of a base's configuration training and drawing know; a base that says anything else is refused.

A setting that nobody reads gives wrong pictures in silence: an EDM schedule trained as a discrete one, latents that are not
brought to mean 0, a text encoder that wants its padding masked. What is known of a base's models stands with its family.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from diffusion_peft.base.families import Family
from peft_core.errors import PeftError

DISCRETE = (
    "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
    "DEISMultistepScheduler", "UniPCMultistepScheduler", "DDIMParallelScheduler", "DDPMParallelScheduler",
)  # fmt: skip
"""All of these draw from one discrete noise schedule, ᾱ_t of T times."""
FLOWS = ("FlowMatchEulerDiscreteScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler")
"""These draw from a flow, the last two where they say `use_flow_sigmas`."""
FIXED = ("timestep_type", "use_flow_sigmas", "use_dynamic_shifting", "interpolation_type")
"""Settings of discrete schedulers that must have their defaults: others mean another noise schedule."""


def completed(family: Family, part: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's configuration with the defaults of its class where it says nothing."""
    return (defaults_of(family.classes[part][0]) if part in family.shapes else {}) | dict(config)


def check_parts(family: Family, name: str, index: Mapping[str, Any]) -> None:
    """Raises PeftError: a part of a class that training and drawing do not know."""
    for part, known in family.classes.items():
        cls = (index.get(part) or [None, None])[1]
        if cls is not None and cls not in known:
            raise PeftError(f"{name}: its {part} is a {cls}; what is known is {' or '.join(known)}.")


def check_config(family: Family, name: str, part: str, config: Mapping[str, Any]) -> None:
    """Raises PeftError: a setting, or a value of one, that training and drawing do not know; the first one is named."""
    if part in family.shapes:
        _check_model(family, name, part, config)
    elif part == "scheduler":
        (_check_flow if family.flows else _check_discrete)(name, config)
    elif config.get("use_attention_mask"):
        raise PeftError(
            f"{name}: its {part} has use_attention_mask, which training does not know: choose another base."
        )


def _check_model(family: Family, name: str, part: str, config: Mapping[str, Any]) -> None:
    defaults, free = defaults_of(family.classes[part][0]), family.shapes[part]
    fixed = family.fixed.get(part, ())
    for key, value in config.items():
        known = key in defaults and key not in fixed if free is None else key in free
        if key.startswith("_") or known or value in (None, False) and not defaults.get(key):
            continue
        if key not in defaults or value != defaults[key]:
            usual = f"what is known is {defaults[key]}" if key in defaults else "it is no known setting"
            raise PeftError(f"{name}: its {part} has {key} = {_short(value)}, and {usual}: choose another base.")


def _check_discrete(name: str, config: Mapping[str, Any]) -> None:
    cls = config.get("_class_name")
    if cls is not None and cls not in DISCRETE:
        raise PeftError(
            f"{name}: its scheduler is a {cls}, whose noise schedule training does not know: choose a base with a discrete "
            "one, such as DDIM, Euler or DPMSolverMultistep."
        )
    known = {key: value for each in DISCRETE for key, value in defaults_of(each).items()}
    _check_settings(name, config, known, FIXED)
    if config.get("prediction_type", "epsilon") not in ("epsilon", "v_prediction"):
        raise PeftError(f"{name} predicts {config['prediction_type']}; training knows epsilon and v_prediction.")
    betas = ("linear", "scaled_linear", "squaredcos_cap_v2")
    if config.get("beta_schedule", "linear") not in betas:
        raise PeftError(f"{name}: its beta_schedule is {config['beta_schedule']}; training knows {', '.join(betas)}.")


def _check_flow(name: str, config: Mapping[str, Any]) -> None:
    cls = config.get("_class_name", FLOWS[0])
    if cls not in FLOWS or (cls != FLOWS[0] and not config.get("use_flow_sigmas")):
        raise PeftError(
            f"{name}: its scheduler is a {cls}, which draws no flow that training knows: give it a {FLOWS[0]}."
        )
    known = defaults_of(cls) | {"num_train_timesteps": 1000}
    _check_settings(name, config, known, ("invert_sigmas", "num_train_timesteps"))
    if config.get("prediction_type", "flow_prediction") != "flow_prediction":
        raise PeftError(f"{name} predicts {config['prediction_type']}; of a flow training knows flow_prediction.")


def _check_settings(name: str, config: Mapping[str, Any], known: Mapping[str, Any], fixed: tuple[str, ...]) -> None:
    for key, value in config.items():
        if key.startswith("_") or (key in known and (key not in fixed or value == known[key])):
            continue
        raise PeftError(
            f"{name}: its scheduler has {key} = {_short(value)}, which training does not know: choose another base."
        )


@functools.cache
def defaults_of(cls: str) -> dict[str, Any]:
    """Setting -> default of a class of diffusers; tuples as lists, as configurations have them."""
    import diffusers

    parameters = inspect.signature(getattr(diffusers, cls).__init__).parameters
    return {
        key: list(each.default) if isinstance(each.default, tuple) else each.default
        for key, each in parameters.items()
        if key != "self"
    }


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
