"""What of a base's configuration training and drawing know; a base that says anything else is refused.

A setting that nobody reads gives wrong pictures in silence: an EDM schedule trained as a discrete one, latents that are not
brought to mean 0, a text encoder that wants its padding masked.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from peft_core.errors import PeftError

CLASSES = {
    "unet": ("UNet2DConditionModel",),
    "vae": ("AutoencoderKL",),
    "text_encoder": ("CLIPTextModel", "CLIPTextModelWithProjection"),
    "text_encoder_2": ("CLIPTextModelWithProjection",),
    "tokenizer": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "tokenizer_2": ("CLIPTokenizer", "CLIPTokenizerFast"),
    "scheduler": (
        "DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LMSDiscreteScheduler", "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
        "DEISMultistepScheduler", "UniPCMultistepScheduler", "DDIMParallelScheduler", "DDPMParallelScheduler",
    ),
}  # fmt: skip
"""Classes of the parts that a base needs. All of these schedulers draw from one discrete noise schedule, ᾱ_t of T times."""
SHAPES = {
    "unet": (
        "sample_size in_channels out_channels down_block_types up_block_types block_out_channels layers_per_block norm_eps "
        "norm_num_groups cross_attention_dim transformer_layers_per_block attention_head_dim num_attention_heads act_fn "
        "use_linear_projection upcast_attention addition_embed_type addition_time_embed_dim only_cross_attention dropout "
        "projection_class_embeddings_input_dim mid_block_scale_factor downsample_padding flip_sin_to_cos freq_shift "
        "reverse_transformer_layers_per_block mid_block_only_cross_attention addition_embed_type_num_heads"
    ).split(),
    "vae": (
        "sample_size block_out_channels layers_per_block down_block_types up_block_types act_fn latent_channels "
        "norm_num_groups scaling_factor force_upcast use_quant_conv use_post_quant_conv mid_block_add_attention"
    ).split(),
}  # fmt: skip
"""Settings that may have any value, since the model's class acts on them by itself; of the others only the default is known."""
FIXED = ("timestep_type", "use_flow_sigmas", "use_dynamic_shifting", "interpolation_type")
"""Settings of schedulers that must have their defaults: others mean another noise schedule than a discrete one."""


def completed(part: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """A UNet's or VAE's configuration with the defaults of its class where it says nothing."""
    return (defaults_of(CLASSES[part][0]) if part in SHAPES else {}) | dict(config)


def check_parts(name: str, index: Mapping[str, Any]) -> None:
    """Raises PeftError: a part of a class that training and drawing do not know."""
    for part, known in CLASSES.items():
        cls = (index.get(part) or [None, None])[1]
        if cls is not None and cls not in known and part != "scheduler":  # of which `check_config` says more
            raise PeftError(f"{name}: its {part} is a {cls}; what is known is {' or '.join(known)}.")


def check_config(name: str, part: str, config: Mapping[str, Any]) -> None:
    """Raises PeftError: a setting, or a value of one, that training and drawing do not know; the first one is named."""
    if part in SHAPES:
        _check_model(name, part, config)
    elif part == "scheduler":
        _check_scheduler(name, config)
    elif config.get("use_attention_mask"):
        raise PeftError(
            f"{name}: its {part} has use_attention_mask, which training does not know: choose another base."
        )


def _check_model(name: str, part: str, config: Mapping[str, Any]) -> None:
    defaults = defaults_of(CLASSES[part][0])
    for key, value in config.items():
        if key.startswith("_") or key in SHAPES[part] or value in (None, False) and not defaults.get(key):
            continue
        if key not in defaults or value != defaults[key]:
            usual = f"what is known is {defaults[key]}" if key in defaults else "it is no known setting"
            raise PeftError(f"{name}: its {part} has {key} = {_short(value)}, and {usual}: choose another base.")


def _check_scheduler(name: str, config: Mapping[str, Any]) -> None:
    cls = config.get("_class_name")
    if cls is not None and cls not in CLASSES["scheduler"]:
        raise PeftError(
            f"{name}: its scheduler is a {cls}, whose noise schedule training does not know: choose a base with a discrete "
            "one, such as DDIM, Euler or DPMSolverMultistep."
        )
    known = {key: value for each in CLASSES["scheduler"] for key, value in defaults_of(each).items()}
    for key, value in config.items():
        if key.startswith("_") or (key in known and (key not in FIXED or value == known[key])):
            continue
        raise PeftError(
            f"{name}: its scheduler has {key} = {_short(value)}, which training does not know: choose another base."
        )
    if config.get("prediction_type", "epsilon") not in ("epsilon", "v_prediction"):
        raise PeftError(f"{name} predicts {config['prediction_type']}; training knows epsilon and v_prediction.")
    betas = ("linear", "scaled_linear", "squaredcos_cap_v2")
    if config.get("beta_schedule", "linear") not in betas:
        raise PeftError(f"{name}: its beta_schedule is {config['beta_schedule']}; training knows {', '.join(betas)}.")


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
