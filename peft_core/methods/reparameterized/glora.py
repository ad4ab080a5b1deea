import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.formed import Formed
from peft_core.method import Method, Plan
from peft_core.parts.factors import new_parameter, rows_of
from peft_core.values import Count

LINEARS = ("qkv", "proj", "cross_q", "cross_k", "cross_v", "cross_proj", "fc1", "fc2")
LETTERS = {"l": "lora", "v": "vector", "c": "constant", "n": "none"}
Matrix = Literal["lora", "vector", "constant", "none"]
Prompt = Literal["lora", "vector", "none"]
Vector = Literal["vector", "constant", "none"]


@dataclass(frozen=True, kw_only=True)
class GLoRA(Method):
    """GLoRA: W' = W + W ⊙ A + B, b' = b + D ⊙ b + E + W C; A and B (out, in), C (in), D and E (out), each of a form of its own.

    Chavan et al., "One-for-All: Generalized LoRA for Parameter-Efficient Fine-tuning", 2023. A, B: `lora` down up with down
    (out, r) zero and up (r, in) Xavier-uniform, a `vector` over the outputs, a `constant`, or `none`; C: `lora` (in, r) (r, 1),
    a `vector` or `none`; D, E: a `vector`, a `constant` or `none`. All start at zero: identity at step 0. Merges. D is left out
    where a layer has no bias. On qkv, proj, fc1 and fc2 with rank 4: Arnav0400/ViT-Slim.
    The authors train all forms at once, one drawn for each layer and step (500 epochs, AdamW 1e-4), and search a form for each
    layer by evolution. Here the forms are given, by default the richest, which hold all others: 1,603,776 parameters on
    ViT-B/16 at rank 4. `layers` takes what a search found.

    Args:
        rank: r.
        A, B, C, D, E: forms, the same at every layer.
        layers: in their place one word a layer, in the model's order, of five letters for A to E: l (lora), v, c, n.
        targets: roles; those above where None, but for EVA's fused qkv, whose bias stands outside it.
    """

    rank: Count = 4
    A: Matrix = "lora"
    B: Matrix = "lora"
    C: Prompt = "lora"
    D: Vector = "vector"
    E: Vector = "vector"
    layers: Sequence[str] | None = None
    targets: Sequence[str] | None = None
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({}, 1_603_776),
        ({"A": "none", "B": "lora", "C": "none", "D": "none", "E": "none"}, 589_824),
        ({"A": "vector", "B": "constant", "C": "vector", "D": "constant", "E": "vector"}, 230_496),
    )

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (
            cls(rank=2),
            cls(A="vector", B="constant", C="vector", D="constant"),
            cls(A="constant", C="none", D="none"),
        )

    def install(self, plan: Plan) -> None:
        places = list(plan.biased(self.targets, LINEARS, Generalized))
        words = [self._word()] * len(places) if self.layers is None else [_forms(word) for word in self.layers]
        if len(words) != len(places):
            raise PeftError(f"glora got {len(words)} words in layers for {len(places)} layers: give one a layer.")
        for place, forms in zip(places, words, strict=True):
            weight = plan.stock(place)
            if forms[2] != "none" and weight.dim() > 2:
                raise PeftError(
                    f"glora cannot prompt {place.role} at {place.module}, a convolution whose edges would not see C: set C=none."
                )
            if min(plan.shape(place)) < self.rank:
                raise PeftError(
                    f"glora got rank {self.rank}, above the width {min(plan.shape(place))} of {place.module}."
                )
            module = plan.model.get_submodule(place.module)
            has_bias = module._parameters.get(place.bias or "") is not None
            plan.change_weight(place, Generalized(weight, place.rows, self.rank, forms, has_bias))

    def _word(self) -> tuple[str, ...]:
        return self.A, self.B, self.C, self.D, self.E


def _forms(word: str) -> tuple[str, ...]:
    allowed = ("lvcn", "lvcn", "lvn", "vcn", "vcn")
    if len(word) != 5 or any(letter not in known for letter, known in zip(word, allowed, strict=False)):
        raise PeftError(f'glora cannot read "{word}" in layers: a word is five letters for A to E, as llvcn.')
    return tuple(LETTERS[letter] for letter in word)


class Form(nn.Module):
    """A matrix (rows, columns), as a low-rank product, as one column, or as a number; zero at the start."""

    def __init__(self, weight: Tensor, form: str, rows: int, columns: int, rank: int) -> None:
        super().__init__()
        self.down = self.up = self.value = None
        if form == "lora":
            self.down, self.up = new_parameter(weight, rows, rank), new_parameter(weight, rank, columns)
            nn.init.zeros_(self.down)
            nn.init.xavier_uniform_(self.up)
        else:
            self.value = nn.Parameter(torch.zeros_like(new_parameter(weight, rows if form == "vector" else 1, 1)))

    def forward(self) -> Tensor:
        return self.down @ self.up if self.value is None else self.value  # type: ignore[operator]


class Generalized(Formed):
    """W' = W + W ⊙ A + B, b' = b + D ⊙ b + E + W C."""

    needs_matrix = True
    A: Form | None
    B: Form | None
    C: Form | None
    D: Form | None
    E: Form | None

    def __init__(
        self, weight: Tensor, rows: tuple[int, int] | None, rank: int, forms: Sequence[str], has_bias: bool
    ) -> None:
        super().__init__(rows)
        out, inner = rows_of(weight, rows), math.prod(weight.shape[1:])
        sizes = {"A": (out, inner), "B": (out, inner), "C": (inner, 1), "D": (out, 1), "E": (out, 1)}
        for (name, size), form in zip(sizes.items(), forms, strict=True):
            wanted = form != "none" and (name != "D" or has_bias)
            setattr(self, name, Form(weight, form, *size, rank) if wanted else None)
        self.shifts = self.C is not None  # type: ignore[misc]

    def forward(self, weight: Tensor) -> Tensor:
        flat = weight.flatten(1)
        new = flat if self.A is None else flat + flat * self.A()
        new = new if self.B is None else new + self.B()
        return new.view(weight.shape).to(weight.dtype)

    def bias(self, bias: Tensor | None) -> Tensor | None:
        new = bias
        if bias is not None and self.D is not None:
            new = bias + bias * self.D().flatten()
        if self.E is not None:
            shift = self.E().flatten()
            new = shift if new is None else new + shift
        return new if new is bias or bias is None else new.to(bias.dtype)  # type: ignore[union-attr]

    def shift(self, weight: Tensor) -> Tensor:
        assert self.C is not None
        prompt = self.C().flatten()
        return weight.to(prompt.dtype) @ prompt
