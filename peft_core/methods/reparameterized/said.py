import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.formed import Formed
from peft_core.grafts.shared import Reference
from peft_core.method import Method, Plan
from peft_core.parts.factors import new_parameter
from peft_core.values import Range, Seed


@dataclass(frozen=True, kw_only=True)
class SAID(Method):
    """SAID: θ' = θ + λ_t F(z)_t for each tensor t, weights and biases: one small vector z trains, projected by Fastfood.

    Aghajanyan et al., "Intrinsic Dimensionality Explains the Effectiveness of Language Model Fine-Tuning", ACL 2021, as in
    rabeehk/compacter, which holds the authors' code. F = H G Π H B, cut to the tensor's size d and divided by √(d ΣG²): z padded
    to a power of two, B random signs, H Walsh–Hadamard, Π a permutation, G Gaussian, all drawn from the seed, which the
    adapter's card holds in their place. z is zero, λ (one a tensor) one: identity at step 0. `dim` counts z and the λ's (there z
    has one entry less). Their backward of H divides by √ of its size once more, which weighs tensors by their size: this is
    the true gradient. They train 20,000 numbers on all of the model by AdamW at 3e-2; time and memory grow with the weights
    that are projected (9 bytes a weight), so that targets are worth a choice.

    Args:
        dim: what trains in all.
        seed: of the projections.
        targets: roles or groups; q and v, or the family's default, where None.
    """

    dim: Annotated[int, Range(2)] = 20_000
    seed: Seed = 0
    targets: Sequence[str] | None = None
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 20_000),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(dim=200), cls(dim=100, targets=("q", "fc1"))

    def install(self, plan: Plan) -> None:
        places = [place for place, _ in plan.places(self.targets)]
        biases = [
            place.bias and plan.model.get_submodule(place.module)._parameters.get(place.bias) is not None
            for place in places
        ]
        tensors = len(places) + sum(map(bool, biases))
        if self.dim <= tensors:
            raise PeftError(
                f"said got dim {self.dim}: it must be above the {tensors} tensors that it changes, each with a λ."
            )
        weight = plan.stock(places[0])
        z = plan.shared("z", lambda: nn.init.zeros_(new_parameter(weight, self.dim - tensors)))  # type: ignore[arg-type,return-value]
        chance = torch.Generator().manual_seed(self.seed)
        for place, has_bias in zip(places, biases, strict=True):
            out, inner = plan.shape(place)
            change = Projected(plan.stock(place), place.rows, (out * inner, out if has_bias else 0), z, chance)
            plan.change_weight(place, change)


def walsh_hadamard(x: Tensor) -> Tensor:
    """H x, unnormalised, x of a power of two: the last 2^k of the index's bits at once, which then stand first."""
    left = x.numel()
    while left > 1:
        size = min(left, 32)
        small = torch.ones(1, 1, dtype=x.dtype, device=x.device)
        while len(small) < size:
            small = torch.cat((torch.cat((small, small), 1), torch.cat((small, -small), 1)))
        x, left = (x.view(-1, size) @ small).t().reshape(-1), left // size
    return x


class Fastfood(nn.Module):
    """F(z) for one tensor of `size` entries."""

    def __init__(self, size: int, width: int, chance: torch.Generator, device: torch.device) -> None:
        super().__init__()
        self.signs: Tensor
        self.order: Tensor
        self.gauss: Tensor
        whole = 1 << (max(size, width) - 1).bit_length()
        signs = torch.randint(0, 2, (whole,), generator=chance) * 2 - 1
        order, gauss = torch.randperm(whole, generator=chance), torch.randn(whole, generator=chance)
        self.size = size
        for name, value in (("signs", signs.to(torch.int8)), ("order", order.to(torch.int32)), ("gauss", gauss)):
            self.register_buffer(name, value.to(device), persistent=False)

    def forward(self, z: Tensor) -> Tensor:
        mixed = walsh_hadamard(F.pad(z, (0, len(self.signs) - len(z))) * self.signs)
        gauss = self.gauss.to(z.dtype)
        mixed = walsh_hadamard(mixed.index_select(0, self.order) * gauss)
        return mixed[: self.size] / (gauss.norm() * math.sqrt(self.size))


class Projected(Formed):
    """W' = W + λ F(z), and b' likewise."""

    commutes = True

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, sizes: tuple[int, int], z: Reference,
                 chance: torch.Generator) -> None:  # fmt: skip
        super().__init__(rows)
        self.z, width = z, len(z())
        self.of_weight = Fastfood(sizes[0], width, chance, weight.device)
        self.of_bias = Fastfood(sizes[1], width, chance, weight.device) if sizes[1] else None
        self.scale = new_parameter(weight, 2 if sizes[1] else 1)
        nn.init.ones_(self.scale)

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            change = self.scale[0] * self.of_weight(self.z())
        return (weight + change.view(weight.shape)).to(weight.dtype)

    def bias(self, bias: Tensor | None) -> Tensor | None:
        if bias is None or self.of_bias is None:
            return bias
        with torch.autocast(bias.device.type, enabled=False):
            return (bias + self.scale[1] * self.of_bias(self.z())).to(bias.dtype)
