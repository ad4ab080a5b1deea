"""Pictures as prompts of Flux: in each two-stream block what the picture asks is answered by the prompt picture's tokens too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_peft.control.branch import Named
from diffusion_peft.control.transformers import OfLatents
from peft_core.grafts.calls import hand_on, handed, state
from peft_core.grafts.graft import argument, part_of, put_output


class PictureOfFlux(OfLatents):
    """Image features to tokens. `features` are B D of the picture, `null` those of none."""

    wants = ("features", "null")

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def check(self, x: Tensor, condition: Any) -> None:
        """Features have no size of a picture."""

    def prepared(self, condition: dict[str, Tensor]) -> Tensor:
        return self.net(condition["features"])

    def join(self, prepared: Tensor, given: dict[str, Any]) -> dict[str, Any]:
        state()[f"{self.key}/tokens"] = prepared
        return {}


class Asked(Named):
    """Behind the norm of an attention's queries, B N H D, before their places turn them."""

    def after(self, y: Tensor) -> Tensor:
        state()[self.key, "asked"] = y
        return y


class Answered(Named):
    """x ← x + s · softmax(Q K_iᵀ / √d) V_i behind the block, K_i and V_i what `make` makes of the tokens, each B P W."""

    def __init__(self, make: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.make = make

    def entering(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        x = argument(module, args, kwargs, "hidden_states")
        tokens = handed(x, f"{self.key}/tokens")
        if tokens is not None:
            hand_on(x, f"{self.key}/tokens", tokens)  # where the block runs again
        state()[self.key, "here"] = tokens
        return args, kwargs

    def leaving(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        tokens, asked = state().get((self.key, "here")), state().pop((self.key, "asked"), None)
        if tokens is None or asked is None:
            return output
        k, v = (each.unflatten(-1, asked.shape[2:]).transpose(1, 2) for each in self.make(tokens))
        q = asked.transpose(1, 2)
        answer = F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype)).transpose(1, 2).flatten(2)
        x = part_of(output, 1)
        y = x + answer.to(x.dtype) * self.factor
        hand_on(y, f"{self.key}/tokens", tokens, made_of=x)
        return put_output(output, 1, y)
