import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.attach import grafts_named, is_inserted
from peft_core.errors import PeftError
from peft_core.grafts.formed import Formed
from peft_core.lifecycle import adaptation_of, own_grafts
from peft_core.merging import names_of
from peft_core.method import Method, Plan
from peft_core.parts.factors import new_parameter
from peft_core.parts.quantised.few_bits import from_bits, to_bits


class Signed(Formed):
    """W' = W + c·S: signs S of a bit each, one trained scale c."""

    commutes = True
    needs_matrix = True
    signs: Tensor

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None):
        super().__init__(rows)
        size = (weight if rows is None else weight[slice(*rows)]).numel()
        self.register_buffer("signs", torch.full((-(-size // 8),), 255, dtype=torch.uint8, device=weight.device))
        self.scale = new_parameter(weight, 1)
        nn.init.zeros_(self.scale)

    @torch.no_grad()
    def take(self, difference: Tensor) -> None:
        """The signs of this, 0 counting as +, and its mean absolute value."""
        self.signs.copy_(to_bits((difference.flatten() >= 0).long(), 1))
        self.scale.copy_(difference.abs().mean(dtype=self.scale.dtype))

    def forward(self, weight: Tensor) -> Tensor:
        signs = (from_bits(self.signs, 1, weight.numel()).to(self.scale.dtype) * 2 - 1).view(weight.shape)
        return (weight + self.scale * signs).to(weight.dtype)


@dataclass(frozen=True, kw_only=True)
class BitDelta(Method):
    """BitDelta: what full fine-tuning did to a matrix as its signs, a bit a weight, and one scale: W' = W + c·sign(W_tuned − W).

    Liu et al., "BitDelta: Your Fine-Tune May Only Be Worth One Bit", NeurIPS 2024, after FasterDecoding/BitDelta@ecbee1e:
    sign(0) = +1, c starts at the mean |W_tuned − W|, and the scales alone are then distilled, AdamW at 1e-4 on the squared
    difference of the logits to the tuned model's. It is made of a finished run of full fine-tuning: `vision_peft bit_delta --run
    RUN`, or `take` and `distil` here. All that is no matrix of attention or MLP (biases, norms, embeddings, head) is the tuned
    model's and kept in full; q, k and v count as matrices of their own. On ViT-B/16 72 scales, 10.6 MB of signs and 864,000 other
    parameters, where the tuned model has 340 MB. Before it is made c is 0: identity.
    """

    def install(self, plan: Plan) -> None:
        known = plan.anatomy.roles()
        kinds = ("q", "k", "v", "proj", "fc1", "fc2")
        roles = [role for role in (*kinds, *(f"cross_{kind}" for kind in kinds)) if role in known]
        seen = set()
        for place, _ in plan.places(roles, change=Signed):
            plan.change_weight(place, Signed(plan.stock(place), place.rows))
            seen.add((place.module, place.weight))
        for module, name in plan.stock_parameters():
            if (module, name) not in seen:
                plan.train(module, name)

    def parameter_groups(self, model: nn.Module, lr: float, weight_decay: float) -> Iterable[dict[str, Any]]:
        if all(bool((change.signs == 255).all()) for change in own_grafts(model, self, Signed)):
            raise PeftError(
                "bit_delta is made of a finished run of full fine-tuning, not trained: vision_peft bit_delta --run RUN."
            )
        return ()


def take(model: nn.Module, method: BitDelta, tuned: nn.Module) -> None:
    """Signs, scales and all other parameters and buffers of a tuned model, into the adapted stock one."""
    there, paths = tuned.state_dict(), {id(module): path for path, module in model.named_modules()}
    with torch.no_grad():
        for module, _, change in grafts_named(model, adaptation_of(model, method).name):
            assert isinstance(change, Signed)
            name = names_of(module)[0]
            stock = module._parameters[name]
            assert stock is not None
            difference = there[f"{paths[id(module)]}.{name}"].to(stock) - stock
            change.take(difference if change.rows is None else difference[slice(*change.rows)])
        changed = {f"{paths[id(module)]}.{names_of(module)[0]}" for module, *_ in grafts_named(model, method.name)}
        for key, value in model.state_dict().items():
            if not is_inserted(key) and key not in changed:
                value.copy_(there[key])


def distil(
    model: nn.Module, method: BitDelta, tuned: nn.Module, batches: Iterable[Tensor], steps: int, lr: float
) -> float:
    """Trains the scales on what the tuned model answers to some batches, the rate falling along a cosine; the last loss."""
    scales = [change.scale for change in own_grafts(model, method, Signed)]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in trained:
        parameter.requires_grad_(False)
    loss = torch.tensor(math.nan)
    try:
        for scale in scales:
            scale.requires_grad_(True)
        optimizer = torch.optim.AdamW(scales, lr=lr, weight_decay=0.01)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
        for _, x in zip(range(steps), batches, strict=False):
            with torch.no_grad():
                wanted = tuned(x)
            loss = F.mse_loss(model(x), wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    finally:
        for parameter, before in trained:
            parameter.requires_grad_(before)
    return loss.item()
