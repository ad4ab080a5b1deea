"""The optimisers that programs train with, by their names."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import nn

from peft_core import lifecycle
from peft_core.errors import PeftError
from peft_core.stock import trained_head

Optimizer = Literal["adamw", "adam", "sgd", "adamw8bit", "paged_adamw", "galore", "mezo", "prodigy", "schedule_free"]
WITHOUT_GRADIENTS = ("mezo",)
"""Those that compute losses alone, twice a step on the same batch."""
PACKAGES = {"prodigy": "prodigyopt", "schedule_free": "schedulefree"}
"""What has them, and the extra that installs it."""


def make_optimizer(
    name: Optimizer, groups: list[dict[str, Any]], lr: float, device: torch.device, precision: str,
    models: Iterable[nn.Module], own: Mapping[str, Any], warm: int = 0,
) -> torch.optim.Optimizer:  # fmt: skip
    """An optimiser of these groups.

    Args:
        models: that train; what of them is a head is known by them.
        own: settings that this optimiser alone has.
        warm: steps of warm-up, where the optimiser has its own schedule.
    """
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=0.9)
    if name == "adamw8bit":
        return load_bitsandbytes().optim.AdamW8bit(groups, lr=lr)
    if name == "paged_adamw" and device.type == "cuda":  # pages are CUDA's; elsewhere it is plain AdamW
        return load_bitsandbytes().optim.PagedAdamW32bit(groups, lr=lr)
    if name == "adam":
        return torch.optim.Adam(groups, lr=lr)
    if name == "galore":
        from peft_core.optimizers.galore import GaLore

        heads = {id(tensor) for model in models for tensor in trained_head(model).values()}
        return GaLore(_apart(groups, heads, rank=0), lr=lr, **own)
    if name == "mezo":
        from peft_core.optimizers.mezo import MeZO

        return MeZO(groups, lr=lr, **own)
    if name == "prodigy":
        if len({group.get("lr", lr) for group in groups}) > 1:
            raise PeftError(
                "prodigy finds one rate for all that trains: take a method without rates of its own, and leave --text_lr out."
            )
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that weight decay is decoupled
            return load_package(name).Prodigy(groups, lr=lr, use_bias_correction=True, safeguard_warmup=True)
    if name == "schedule_free":
        check_gradients_stay(name, models)
        return load_package(name).AdamWScheduleFree(groups, lr=lr, warmup_steps=warm)
    # Lightning refuses to clip the gradients of a fused optimiser under float16
    return torch.optim.AdamW(groups, lr=lr, fused=precision != "16-mixed")


def check_optimizer(name: str, lr: float | None = None) -> None:
    """Raises PeftError: its package is missing, or `lr` is no factor where it finds the rate by itself."""
    if name == "adamw8bit":
        load_bitsandbytes()
    elif name in PACKAGES:
        load_package(name)
    if name == "prodigy" and lr is not None and not 0.1 <= lr <= 10:
        raise PeftError(f"prodigy finds its rate, and --lr is a factor on it, usually 1: give --lr 1, not {lr:g}.")


def load_package(name: str) -> Any:
    """The module of an optimiser that a package of its own has.

    Raises:
        PeftError: it is not installed.
    """
    try:
        return importlib.import_module(PACKAGES[name])
    except ImportError as error:
        raise PeftError(
            f"--optimizer {name} needs {PACKAGES[name]}: pip install 'visual-peft[{PACKAGES[name]}]', or use --optimizer adamw."
        ) from error


def _apart(groups: list[dict[str, Any]], some: set[int], **settings: Any) -> list[dict[str, Any]]:
    """The same groups, with tensors of these ids in groups of their own that have these settings."""
    found = []
    for group in groups:
        inside = [p for p in group["params"] if id(p) in some]
        others = [p for p in group["params"] if id(p) not in some]
        found += [group | {"params": others}] * bool(others) + [group | {"params": inside} | settings] * bool(inside)
    return found


def check_without_gradients(name: str, trainer: Any, models: Iterable[nn.Module]) -> None:
    """Raises PeftError for what only gradients can do, where there are none."""
    refused = {
        "--trainer.gradient_clip_val": trainer.gradient_clip_val,
        "--trainer.accumulate_grad_batches": trainer.accumulate_grad_batches > 1,
        "--trainer.precision 16-mixed": trainer.precision == "16-mixed",
        "several devices": trainer.world_size > 1,
    }
    for flag in [flag for flag, given in refused.items() if given]:
        raise PeftError(f"--optimizer {name} computes no gradients, on one device: leave {flag} out.")
    for model in models:
        for call in ("prepare", "before_step", "after_step"):
            if method := lifecycle.who_wants(model, call):
                raise PeftError(
                    f"{method} works with gradients ({call}), which --optimizer {name} never computes: take another optimiser."
                )


def check_gradients_stay(name: str, models: Iterable[nn.Module]) -> None:
    """Raises PeftError for methods that look at gradients behind a step of an optimiser that overwrites them."""
    if method := next(filter(None, (lifecycle.who_wants(model, "after_step") for model in models)), None):
        raise PeftError(
            f"{method} works after each step, when --optimizer {name} has overwritten the gradients: take adamw."
        )


def load_bitsandbytes() -> Any:
    """The module, for 8-bit optimisers.

    Raises:
        PeftError: it is not installed, or does not run on this machine.
    """
    try:
        import bitsandbytes  # pyright: ignore[reportMissingImports]
    except (ImportError, OSError, RuntimeError) as error:
        raise PeftError(
            f"this --optimizer needs bitsandbytes, which does not load here ({error}): "
            "pip install 'visual-peft[bitsandbytes]', or use --optimizer adamw."
        ) from error
    return bitsandbytes
