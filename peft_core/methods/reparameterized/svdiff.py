from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.formed import Formed
from peft_core.method import Method, Plan
from peft_core.parts.factors import new_parameter
from peft_core.values import Positive


@dataclass(frozen=True, kw_only=True)
class SVDiff(Method):
    """SVDiff: W = U diag(σ) Vᵀ, W' = U diag(relu(σ + s·δ)) Vᵀ: shifts δ of the singular values of every weight.

    Han et al., "SVDiff: Compact Parameter Space for Diffusion Fine-Tuning", ICCV 2023. A convolution's weight counts as
    (out, in·kh·kw), a norm's as one row, whose one shift scales it. δ is zero, and the change U diag(relu(σ + s·δ) − σ) Vᵀ is
    added to W: identity at step 0. As in mkshing/svdiff-pytorch shifts of norms learn at a thousandth of the rate (1e-6 beside
    1e-3; the paper: a thousand times that of full fine-tuning).

    A file holds δ alone: the decomposition is made when the method is installed, of the stock weight as it stands then, and
    anew when a stock checkpoint is loaded into the adapted model, in float64, and kept beside the model (U and V, about twice
    the weight). u vᵀ of a singular value has no sign to get wrong, and is the same on every machine to float32 as long as the
    value differs from its neighbours by more than some 1e-9 of the largest; values that are equal share a space without a basis
    of its own, within which shifts that differ have no meaning beyond the machine that learnt them. Trained weights have no
    equal values; weights made of zeros or of an identity do, and directions of σ = 0 are refused.

    Args:
        scale: s.
        targets: roles or groups; every role that the family knows where None.
    """

    scale: Positive = 1.0
    targets: Sequence[str] | None = None
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({"targets": ("attn", "mlp")}, 55_296), ({}, 56_089))

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(scale=5.0), cls(scale=5.0, targets=("attn", "mlp"))

    def install(self, plan: Plan) -> None:
        known = plan.anatomy.roles()
        roles = [role for role in known if role != "qkv" or "q" not in known] if self.targets is None else self.targets
        for place, _ in plan.places(sorted(roles) if self.targets is None else roles):
            module, weight = plan.model.get_submodule(place.module), plan.stock(place)
            if self.targets is None and Spectrum.accepts(module, weight, place.rows) is not None:
                continue
            own = weight.detach() if place.rows is None else weight.detach()[slice(*place.rows)]
            try:
                plan.change_weight(place, Spectrum(own, place.rows, self.scale))
            except Flat:
                raise PeftError(
                    f"svdiff cannot decompose {place.module} ({place.role}): it is of no full rank."
                ) from None

    def parameter_groups(self, model: nn.Module, lr: float, weight_decay: float) -> Iterable[dict[str, Any]]:
        from peft_core.lifecycle import own_grafts

        norms = [graft.delta for graft in own_grafts(model, self, Spectrum) if len(graft.delta) == 1]
        return [{"params": norms, "lr": lr / 1000, "weight_decay": 0.0}] if norms else []


class Flat(Exception):
    """A weight has singular values of zero. Never leaves this file."""


def decompose(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """U (out, r), σ (r), Vᵀ (r, in) in float64: by the eigenvectors of the smaller Gram matrix, several times as fast as an SVD,
    unless the smallest σ is too small for that."""
    flat = weight.reshape(1, -1) if weight.dim() < 2 else weight.flatten(1)
    if flat.is_meta:
        rank = min(flat.shape)
        return flat.new_empty(len(flat), rank), flat.new_empty(rank), flat.new_empty(rank, flat.shape[1])
    flat = flat.double()
    tall = flat if flat.shape[0] <= flat.shape[1] else flat.t()
    values, one = torch.linalg.eigh(tall @ tall.t())
    if values[0] > 1e-9 * values[-1]:
        values, one = values.flip(0).sqrt(), one.flip(1)
        other = (one.t() @ tall) / values[:, None]
        return (one, values, other) if tall is flat else (other.t(), values, one.t())
    u, values, v = torch.linalg.svd(flat, full_matrices=False)
    if not values[-1] > 1e-12 * values[0]:
        raise Flat
    return u, values, v


def _print_of(weight: Tensor) -> tuple[float, ...]:
    """Three numbers that tell one weight from another."""
    if weight.is_meta:
        return ()
    flat = weight.detach().double().flatten()
    return flat.sum().item(), flat.norm().item(), (flat * torch.arange(len(flat), device=flat.device)).sum().item()


class Spectrum(Formed):
    """W' = W + U diag(relu(σ + s·δ) − σ) Vᵀ, of a weight's own rows."""

    def __init__(self, weight: Tensor, rows: tuple[int, int] | None, scale: float):
        super().__init__(rows)
        self.u: Tensor
        self.sigma: Tensor
        self.v: Tensor
        self.delta, self.scale = new_parameter(weight, min(weight.numel() // len(weight), len(weight))), scale
        nn.init.zeros_(self.delta)
        self._take(weight)

    def _take(self, weight: Tensor) -> None:
        self.weight_was = _print_of(weight)
        for name, value in zip(("u", "sigma", "v"), decompose(weight), strict=True):
            self.register_buffer(name, value.to(self.delta).contiguous(), persistent=False)

    @torch.no_grad()
    def stock_loaded(self, weight: Tensor) -> None:
        if _print_of(weight) != self.weight_was:
            self._take(weight)

    def forward(self, weight: Tensor) -> Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            apart = F.relu(self.sigma + self.scale * self.delta) - self.sigma
            change = (self.u * apart) @ self.v
        return (weight + change.view(weight.shape)).to(weight.dtype)
