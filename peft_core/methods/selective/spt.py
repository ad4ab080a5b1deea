import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.anatomies import Place
from peft_core.errors import PeftError
from peft_core.grafts.branch import Branch
from peft_core.grafts.weight_changes import add_rows, changed_bias
from peft_core.kernels.lowrank_linear import lowrank_linear
from peft_core.kernels.sparse import sparse_linear
from peft_core.method import Method, Plan
from peft_core.parts.bottleneck import Bottleneck, drop_samples
from peft_core.parts.lowrank import LowRank
from peft_core.parts.selection.budget import Cost, largest_within
from peft_core.parts.selection.importance import Scored, gradient_scores, sites_of
from peft_core.parts.sparse import ChosenByValue
from peft_core.values import Count, Range, Rate, Widths

AtLeastOne = Annotated[float, Range(1)]
CLASS_TOKENS = ("cls_token", "class_embedding")


class LateModule:
    """A module whose parameters are empty until `begin`; they keep their identity. Its output is zero at the start.

    Args:
        down: name of the parameter that is Kaiming-uniform (a = √5); all others are zero.
    """

    def __init__(self, module: nn.Module, down: str) -> None:
        self.module, self.down = module, down
        self.shapes = {name: parameter.shape for name, parameter in module.named_parameters()}
        self.cost = sum(shape.numel() for shape in self.shapes.values())
        for parameter in module.parameters():
            parameter.data = parameter.new_empty([0] * parameter.dim())

    def __bool__(self) -> bool:
        """Whether it has begun."""
        return any(parameter.numel() for parameter in self.module.parameters())

    @torch.no_grad()
    def begin(self) -> None:
        for name, parameter in self.module.named_parameters():
            parameter.data, parameter.grad = parameter.new_zeros(self.shapes[name]), None
            if name == self.down:
                nn.init.kaiming_uniform_(parameter, a=math.sqrt(5))

    def fit(self, tensors: Mapping[str, Tensor], prefix: str) -> None:
        """Begins where there is something to load."""
        if not self and any(prefix + name in tensors and tensors[prefix + name].numel() for name in self.shapes):
            for name, parameter in self.module.named_parameters():
                parameter.data = parameter.new_zeros(self.shapes[name])


class SparseOrWhole(ChosenByValue):
    """W' = W + scatter(values), or, once its structure has begun, with entries of the bias alone and W' = W + B A, or nothing of
    the weight and an adapter behind the layer."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.low: LowRank | None = None
        self.structure: LateModule | None = None
        self.drop_path = 0.0

    @property
    def is_matrix(self) -> bool:
        return min(self.shape) > 1

    @property
    def dropout(self) -> float | None:
        """For the plan, which refuses it where it cannot be."""
        return None if self.low is None or self.low.dropout is None else self.low.dropout.p

    @property
    def is_low_rank(self) -> bool:
        return self.low is not None and self.low.A.numel() > 0

    @property
    def reads_input(self) -> bool:  # type: ignore[override]
        return self.is_low_rank and self.training and bool(self.dropout or self.drop_path)

    # as the low-rank kernel calls it

    scale = 1.0

    def factors(self) -> tuple[Tensor, Tensor]:
        assert self.low is not None
        return self.low.factors()

    def forward(self, weight: Tensor) -> Tensor:
        return self.low(weight) if self.is_low_rank else super().forward(weight)  # type: ignore[misc]

    def on_input(self, x: Tensor, run: Any) -> Tensor:
        if not self.is_low_rank:
            return super().on_input(x, run)
        self._check()
        y = self.low.on_input(x, run) * self.factor  # type: ignore[union-attr]
        return self.with_bias(drop_samples(y, self.drop_path, self.training), run)

    @staticmethod
    def kernel(x: Tensor, weight: Tensor, bias: Tensor | None, deltas: list[Any]) -> Tensor:
        for delta in deltas:
            delta._check()
        bias = changed_bias(bias, deltas, weight)
        low = [delta for delta in deltas if delta.is_low_rank]
        if len(low) == len(deltas):
            return lowrank_linear(x, weight, bias, low)
        y = sparse_linear(x, weight, bias, [delta for delta in deltas if not delta.is_low_rank])
        for delta in low:
            y = add_rows(y, delta.low.on_input(x, F.linear) * delta.factor, delta.rows)
        return y

    @staticmethod
    def conv_kernel(module: Any, x: Tensor, delta: Any) -> Tensor | None:
        return None if delta.is_low_rank else ChosenByValue.conv_kernel(module, x, delta)

    def fit(self, tensors: Mapping[str, Tensor]) -> None:
        if self.low is not None and self.structure is not None:
            self.structure.fit(tensors, "low.")
        super().fit(tensors)


class Behind(Branch):
    """y ← y + adapter(drop(y)) on rows of what a layer gives, from the moment its adapter begins."""

    def __init__(self, structure: LateModule, rows: tuple[int, int] | None, dropout: float) -> None:
        super().__init__(structure.module, read=False)
        self.structure, self.rows, self.dropout = structure, rows, dropout

    def after(self, y: Tensor) -> Tensor:
        if not self.structure:
            return y
        own = y if self.rows is None else y[..., slice(*self.rows)]
        change = self.change(F.dropout(own, self.dropout, self.training) if self.dropout else own)
        return add_rows(y, change if self.factor == 1.0 else change * self.factor, self.rows)

    def fit(self, tensors: Mapping[str, Tensor]) -> None:
        self.structure.fit(tensors, "change.")


@dataclass(frozen=True, kw_only=True)
class SPT(Scored):
    """SPT: where a matrix has many sensitive entries it gets a LoRA or an adapter, elsewhere the entries themselves train.

    He et al., "Sensitivity-Aware Visual Parameter-Efficient Fine-Tuning", ICCV 2023. An entry's sensitivity is Σ (∂L/∂w)² over
    the mini-batches that `prepare` gets. The most sensitive ones of all matrices, norms and biases of a model are taken
    together; a matrix that holds at least c/α of them gets a structured change, of c parameters, in their place, a vector of
    length c that holds c/β trains whole, and what is left trains as W' = W + scatter(values):
        lora:     W' = W + B A, A (rank, in) Kaiming-uniform (a = √5), B (out, rank) zero;
        adapter:  y' = y + Up gelu(Down y + d) + u behind the layer, Down (rank, out) alike, the rest zero.
    Identity at step 0. α = 10, β = 5, rank 8 and 16 batches (of 32 there) as in ziplab/SPT@e385f67, where dropout and drop path
    of the structured changes are 0.1 (presets spt_lora, spt_adapter) and the class token trains beside. Patch and position
    embeddings stay as they are.

    What differs: there 79 numbers of sensitive entries are tried, and the one nearest to a budget is kept; here it is the largest
    one within it, and the next most sensitive entries of unstructured tensors fill it to the last parameter. Single entries
    of norms train here (there they count, and stay as they are). The adapter of `proj` reads what `proj` gives, and dropout acts
    there as elsewhere (there it reads what `proj` receives, without dropout); q, k and v have a dropout mask each. They choose
    among budgets of 0.2 to 1 million on the test set; the default share is 0.4 million on ViT-B/16: 425,280 parameters, and 768
    of the class token.

    Args:
        form: of the structured changes, lora or adapter.
        rank: of them, one, or one a block where 0 means that none has any.
        alpha: α.
        beta: β.
        batches: how many are looked at.
        dropout: of what a structured change reads.
        drop_path: probability that a sample goes without the structured changes in training.
        class_token: train the class token, beside the budget.
        biases: whether biases take part, and count.
    """

    form: Literal["lora", "adapter"] = "lora"
    rank: Widths = 8
    alpha: AtLeastOne = 10.0
    beta: AtLeastOne = 5.0
    batches: Count = 16
    dropout: Rate = 0.0
    drop_path: Rate = 0.0
    class_token: bool = True
    change: ClassVar[type[ChosenByValue]] = SparseOrWhole
    left_out: ClassVar[tuple[str, ...]] = ("patch_embed", "qkv")
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({"class_token": False}, 425_280),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(share=0.05, rank=2), cls(share=0.03, rank=2, targets=("mlp",), form="adapter", class_token=False)

    def install(self, plan: Plan) -> None:
        super().install(plan)
        of: Any = {(path, slot): graft for path, slot, graft in plan.grafts}
        for place in self.places(plan):
            change = of[place.module, place.role]
            rank = plan.width(self.rank, place.block, place.tower, min(change.shape)) if change.is_matrix else 0
            if rank:
                change.structure = self._structured(plan, place, change, rank)
        costs = [part for change in of.values() if isinstance(change, SparseOrWhole) for part in self.costs(change)]
        most = sum(cost if least <= size else size for size, cost, least in costs)
        if (budget := self.budget([size for size, *_ in costs])) > most:
            raise PeftError(f"spt got a budget of {budget:,}, above the {most:,} that it takes when all is structured.")
        if self.class_token:
            for module, name in plan.stock_parameters():
                if name in CLASS_TOKENS:
                    plan.train(module, name)

    def _structured(self, plan: Plan, place: Place, change: SparseOrWhole, rank: int) -> LateModule:
        if not place.called and (self.form == "adapter" or self.drop_path):
            raise PeftError(
                f"adapters and drop path cannot act at {place.module}, whose weight is read without calling it: set form to lora "
                "and drop_path to 0."
            )
        if self.form == "lora":
            change.drop_path = self.drop_path
            change.low = LowRank(plan.stock(place), place.rows, rank, 1.0, self.dropout)
            return LateModule(change.low, "A")
        if not isinstance(plan.model.get_submodule(place.module), nn.Linear):
            raise PeftError(
                f"spt's adapters follow linears, and {place.module} is none: set form to lora, or other targets."
            )
        made = Bottleneck(
            change.shape[0], rank, activation="gelu", drop_path=self.drop_path, options=plan.options_at(place.module)
        )
        structure = LateModule(made, "down.weight")
        plan.join(place.module, f"{place.role}_adapter", Behind(structure, place.rows, self.dropout))
        return structure

    def costs(self, change: SparseOrWhole) -> Iterator[Cost]:
        """Of the weight and of the bias: entries, parameters of the structured form, sensitive entries from which it has that."""
        size, vector = change.shape[0] * change.shape[1], change.shape[0]
        cost = change.structure.cost if change.structure is not None else 0
        if not change.is_matrix:
            yield Cost(size, size, math.ceil(size / self.beta))
        else:  # one that is absent, or as large as the matrix, is none
            yield Cost(size, cost, math.ceil(cost / self.alpha) if 0 < cost < size else size + 1)
        if change.bias_indices is not None:
            yield Cost(vector, vector, math.ceil(vector / self.beta))

    def prepare(self, model: nn.Module, losses: Iterable[Tensor]) -> None:
        scores = gradient_scores(model, self, losses, torch.square, self.batches)
        changes: list[Any] = [site.graft for site in sites_of(model, self)]
        costs = [part for change in changes for part in self.costs(change)]
        flat = [part for parts in scores for part in parts]
        found = iter(largest_within(flat, costs, self.budget([size for size, *_ in costs])))
        for change, parts in zip(changes, scores, strict=True):
            entries = [next(found) for _ in parts]
            if entries[0] is None and change.is_matrix:
                change.structure.begin()
                entries[0] = torch.empty(0)
            change.choose(
                *(torch.arange(part.numel()) if e is None else e for part, e in zip(parts, entries, strict=True))
            )
