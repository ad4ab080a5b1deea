from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import nn

from peft_core.errors import PeftError
from peft_core.method import Method, Plan
from peft_core.parts.kronecker import Kronecker, split_of
from peft_core.values import Count, Positive, Range


@dataclass(frozen=True, kw_only=True)
class KronA(Method):
    """KronA: W' = W + s·A ⊗ B with whole factors, A (l, m), B (k, n), out = l·k, in = m·n: rank A · rank B, up to full.

    Edalati et al., "KronA: Parameter Efficient Tuning with Kronecker Adapter", 2022. No code was released, and what was read
    of the paper leaves open the factors' shapes, starts and s. Shapes are by default as even as can be (the fewest
    parameters); A ~ N(0, 1/l²) and B = 0, s = 1, as in IBM/DiffuseKronA (Marjit et al., WACV 2025; preset diffuse_krona):
    identity at step 0. Few tokens go through the factors, more through W', which is never kept. The adapters beside the
    feed-forward layer (KronA_B, with or without a learnt residual) are not here. On q, v: 38,400 parameters on ViT-B/16;
    of shape 32, 16 or 64, 8 on attention: 248,176 on the SD 1.5 UNet.

    Args:
        factor: size of A, where it divides out and in; else the nearest split below; −1: as square as can be.
        shape: (l, m), in place of the factor.
        scale: s.
        targets: roles or groups.
    """

    factor: Annotated[int, Range(-1)] = -1
    shape: tuple[Count, Count] | None = None
    scale: Positive = 1.0
    targets: Sequence[str] | None = None
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({"targets": ("q", "v")}, 38_400), ({"targets": ("q", "v"), "factor": 32}, 38_400),
        ({"targets": ("q", "v"), "shape": (64, 8)}, 39_936),
    )  # fmt: skip

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(scale=2.0, targets=("attn", "mlp")), cls(shape=(2, 4))

    def install(self, plan: Plan) -> None:
        for place, _ in plan.places(self.targets, change=Kronecker):
            weight = plan.stock(place)
            split = split_of(weight, place.rows, self.factor)
            if self.shape is not None:
                out, inner = (low * high for low, high in split)
                if out % self.shape[0] or inner % self.shape[1]:
                    raise PeftError(
                        f"krona got the shape {self.shape[0]}, {self.shape[1]}, which does not divide the {out} outputs and "
                        f"{inner} inputs of {place.module}."
                    )
                split = (self.shape[0], out // self.shape[0]), (self.shape[1], inner // self.shape[1])
            change = Kronecker(weight, place.rows, 1, self.scale, split, True, True, False)
            change.scale = self.scale
            nn.init.normal_(change.w1, std=1 / split[0][0])  # type: ignore[arg-type]
            plan.change_weight(place, change)
