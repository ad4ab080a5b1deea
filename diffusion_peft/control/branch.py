"""What every control method puts at the UNet's root: it holds the condition and acts when the UNet is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.graft import Call, Graft

Condition = Mapping[str, Tensor]
_ARGUMENTS = ("sample", "timestep", "encoder_hidden_states")


class Control(Call):
    """The root of a control method. Without a condition the UNet is the base.

    A condition is a mapping of tensors whose first dimension is the pictures of a batch: `picture` B C H W in [0, 1],
    `features` B N D of an image tower, or `boxes` B N 4, `phrases` B N D and `present` B N. Where the UNet is called with
    twice as many rows (classifier-free guidance, the negative half first), `guided` says what both halves get.
    """

    wants: ClassVar[tuple[str, ...]] = ("picture",)
    size: tuple[int, int] | None = None
    """Channels of the picture, and its pixels a latent along each side."""
    partners: list[Graft]
    """Grafts elsewhere in the UNet that this one feeds; references, not submodules."""

    def __init__(self) -> None:
        super().__init__()
        self.condition: Condition | None = None
        self.calls: int | None = None
        self.kept: Any = None
        self.__dict__["partners"] = []

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"kept": None}

    def call(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        if self.condition is None or self.calls == 0:
            self.quiet()
            return args, kwargs
        self.calls = None if self.calls is None else self.calls - 1
        given = dict(zip(_ARGUMENTS, args, strict=False)) | kwargs
        x = given["sample"]
        self.check(x)
        if not torch.is_grad_enabled() and self.kept is not None and self.kept[0] == len(x):
            features = self.kept[1]
        else:
            with self.precision(module, x):
                features = self.prepared(self.rows(len(x)))
            self.kept = None if torch.is_grad_enabled() else (len(x), features)
        with self.precision(module, x):
            return args, kwargs | self.join(features, given)

    def check(self, x: Tensor) -> None:
        """Raises PeftError: a picture of another size or number of channels than latents x need."""
        assert self.condition is not None
        if self.size is None or "picture" not in self.condition:
            return
        channels, shrink = self.size
        have, need = tuple(self.condition["picture"].shape[1:]), (channels, x.shape[2] * shrink, x.shape[3] * shrink)
        if have != need:
            one, other = (" × ".join(map(str, shape)) for shape in (have, need))
            at = f"latents of {x.shape[2]} × {x.shape[3]}"
            raise PeftError(f"the condition is {one} (channels, height, width); {at} need {other}.")

    def precision(self, unet: Any, x: Tensor) -> AbstractContextManager:
        """The branch's parameters are float32, the base may be in half precision."""
        dtype = next(unet.conv_in.parameters()).dtype
        wanted = dtype != torch.float32 and not torch.is_autocast_enabled(x.device.type)
        return torch.autocast(x.device.type, dtype) if wanted else nullcontext()

    def rows(self, count: int) -> dict[str, Tensor]:
        """The condition for a batch of `count` rows.

        Raises:
            PeftError: the condition's rows do not fit it.
        """
        assert self.condition is not None
        have = len(next(iter(self.condition.values())))
        if count == have:
            return dict(self.condition)
        if count % (2 * have):
            raise PeftError(f"the condition has {have} pictures, which do not fit a batch of {count}.")
        return self.guided(
            {key: value.repeat_interleave(count // (2 * have), 0) for key, value in self.condition.items()}
        )

    def guided(self, condition: dict[str, Tensor]) -> dict[str, Tensor]:
        """Negative and positive half; the same condition for both unless a method says otherwise."""
        return {key: torch.cat([value, value]) for key, value in condition.items()}

    def prepared(self, condition: dict[str, Tensor]) -> Any:
        """What depends on the condition alone; in sampling it is computed once for all steps."""
        return condition

    def join(self, prepared: Any, given: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments that the UNet is called with besides; `given` are those that it was called with."""
        raise NotImplementedError(f"{type(self).__name__} must define join(prepared, given)")

    def quiet(self) -> None:
        """There is no condition now."""

    def effect(self) -> float:
        """How far the branch is open: 0 where its output is exactly zero (gates, zero convolutions)."""
        return 1.0


def add_residuals(given: dict[str, Any], key: str, new: list[Tensor]) -> list[Tensor]:
    """The residuals of several branches are summed."""
    old = given.get(key)
    return list(new) if old is None else [a + b for a, b in zip(old, new, strict=True)]


def controls_of(unet: nn.Module) -> Iterator[tuple[str, Control]]:
    """(adaptation, control) of every control method on a UNet."""
    slots = unet._modules.get("peft")
    for name, slot in slots.items() if slots is not None else ():  # type: ignore[operator]
        for graft in slot.children():
            if isinstance(graft, Control):
                yield name, graft


def set_condition(
    unet: nn.Module, condition: Condition | None, name: str | None = None, calls: int | None = None
) -> None:
    """Gives the control methods of a UNet (or the one called `name`) a condition, for all calls until the next one.

    Args:
        condition: see `Control`; None turns the control off.
        calls: of the UNet after which the control is off (scheduled sampling); never where None.

    Raises:
        PeftError: there is no such control, or the condition is not of its kind.
    """
    found = [control for adaptation, control in controls_of(unet) if name in (None, adaptation)]
    if not found:
        raise PeftError("this UNet has no control" + (f' "{name}".' if name else ': adapt(unet, "controlnet") first.'))
    for control in found:
        missing = [key for key in control.wants if condition is not None and key not in condition]
        if missing:
            raise PeftError(f"the condition lacks {', '.join(missing)}: this method takes {', '.join(control.wants)}.")
        control.condition = None if condition is None else {key: condition[key] for key in control.wants}
        control.calls, control.kept = calls, None
