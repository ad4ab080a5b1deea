import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.errors import PeftError
from peft_core.grafts.formed import Formed
from peft_core.method import Method, Plan
from peft_core.parts.chance import chance
from peft_core.parts.factors import new_parameter, rows_of
from peft_core.values import Count, Seed

LINEARS = ("qkv", "proj", "cross_q", "cross_k", "cross_v", "cross_proj", "fc1", "fc2")
LETTERS = {"l": "lora", "v": "vector", "c": "constant", "n": "none"}
ORDER, ALLOWED = "lvcn", ("lvcn", "lvcn", "lvn", "vcn", "vcn")
"""Of A to E."""
RICHEST = ("lora", "lora", "lora", "vector", "vector")
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
    layer by evolution: `search`, and then `vision_peft glora` on the finished run. Without it the forms are given, by default
    the richest, which hold all others: 1,603,776 parameters on ViT-B/16 at rank 4. `layers` takes what a search found.
    In a search a vector is the first column of A's or B's down, a constant that column's first entry, as in the authors' code;
    outside of training all are at their richest (there: drawn, too), and the first step is.

    Args:
        rank: r.
        A, B, C, D, E: forms, the same at every layer.
        search: train the richest forms with one drawn for each layer and letter at each step.
        seed: of these draws.
        layers: in their place one word a layer, in the model's order, of five letters for A to E: l (lora), v, c, n.
        targets: roles; those above where None, but for EVA's fused qkv, whose bias stands outside it.
    """

    rank: Count = 4
    A: Matrix = "lora"
    B: Matrix = "lora"
    C: Prompt = "lora"
    D: Vector = "vector"
    E: Vector = "vector"
    search: bool = False
    seed: Seed = 0
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
            cls(rank=2, search=True),
        )

    def install(self, plan: Plan) -> None:
        if self.search and (self._word() != RICHEST or self.layers is not None):
            raise PeftError("glora searches among all forms: leave A to E and layers out, or set search to false.")
        kind = Drawn if self.search else Generalized
        places = list(plan.biased(self.targets, LINEARS, kind))
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
            plan.change_weight(place, kind(weight, place.rows, self.rank, forms, has_bias))

    def _word(self) -> tuple[str, ...]:
        return self.A, self.B, self.C, self.D, self.E

    def wants(self, call: str) -> bool:
        return super().wants(call) and (call != "after_step" or self.search)

    def after_step(self, model: nn.Module, progress: float) -> None:
        memory = lifecycle.memory(model, self)
        memory["steps"] = memory.get("steps", 0) + 1
        generator = chance(self.seed, memory["steps"])
        for change in lifecycle.own_grafts(model, self, Drawn) if self.search else ():
            for name, letters in zip("ABCDE", ALLOWED, strict=True):
                letter = letters[int(torch.randint(len(letters), (), generator=generator, device="cpu"))]
                if (form := getattr(change, name)) is not None:
                    form.drawn.fill_(ORDER.index(letter))


def _forms(word: str) -> tuple[str, ...]:
    if len(word) != 5 or any(letter not in known for letter, known in zip(word, ALLOWED, strict=False)):
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


class AnyForm(Form):
    """A form at its richest, of which training uses what was drawn, and everything else `used`."""

    drawn: Tensor
    used: Tensor

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        richest, device = 1 if self.down is None else 0, next(self.parameters()).device
        self.register_buffer("drawn", torch.full((), richest, device=device))
        self.register_buffer("used", torch.full((), richest, device=device), persistent=False)

    def forward(self) -> Tensor:
        form, column = self.drawn if self.training else self.used, self.value if self.down is None else self.down[:, :1]
        narrow = torch.where(form == 1, column, torch.where(form == 2, column[:1], 0.0))  # type: ignore[index]
        return narrow if self.down is None else torch.where(form == 0, super().forward(), narrow)

    def size(self, letter: str) -> int:
        """How many parameters it has in that form."""
        most = next(p for p in (self.down, self.value) if p is not None)
        return {"l": sum(p.numel() for p in self.parameters()), "v": len(most), "c": 1, "n": 0}[letter]


class Generalized(Formed):
    """W' = W + W ⊙ A + B, b' = b + D ⊙ b + E + W C."""

    needs_matrix = True
    form: ClassVar[type[Form]] = Form
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
            setattr(self, name, self.form(weight, form, *size, rank) if wanted else None)
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


class Drawn(Generalized):
    """In training the forms that were drawn for this step, otherwise those chosen by `use`, at first the richest."""

    form = AnyForm

    def forms(self) -> dict[str, AnyForm]:
        found: dict[str, Any] = dict(self.named_children())
        for form in found.values():
            form.training = self.training  # merging asks for the change as it is outside of training
        return found

    def use(self, word: str) -> None:
        for name, form in self.forms().items():
            form.used.fill_(ORDER.index(word["ABCDE".index(name)]))

    def size(self, word: str) -> int:
        return sum(form.size(word["ABCDE".index(name)]) for name, form in self.forms().items())

    @torch.no_grad()
    def give(self, other: Generalized) -> None:
        """Its values to a change of narrower forms."""
        for name, own in self.forms().items():
            form: Any = getattr(other, name)
            if form is not None and form.down is not None:
                form.down.copy_(own.down)
                form.up.copy_(own.up)
            elif form is not None:
                column: Any = own.value if own.down is None else own.down
                form.value.copy_(column[: len(form.value), :1])

    def forward(self, weight: Tensor) -> Tensor:
        self.forms()
        return super().forward(weight)

    def bias(self, bias: Tensor | None) -> Tensor | None:
        self.forms()
        return super().bias(bias)

    def shift(self, weight: Tensor) -> Tensor:
        self.forms()
        return super().shift(weight)
