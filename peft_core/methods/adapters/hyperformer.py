from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.attach import pick, unwrapped
from peft_core.errors import PeftError, nearest
from peft_core.grafts.graft import match
from peft_core.grafts.shared import Reference, Shared
from peft_core.lifecycle import own_grafts
from peft_core.method import Method, Plan
from peft_core.values import Count


@dataclass(frozen=True, kw_only=True)
class HyperFormer(Method):
    """HyperFormer: adapters of all tasks and blocks from one hypernetwork, y ← y + LN(Up gelu(Down y)) with Up, Down, their
    biases and LN's weight and bias each linear in e = LN₀(W₂ relu(W₁ [task; block; place])).

    Mahabadi et al., "Parameter-efficient Multi-task Fine-tuning for Transformers via Shared Hypernetworks", ACL 2021. y is what
    attention and MLP add to the stream, behind drop path. `shared` (HyperFormer++): one hypernetwork, and `place`, attention or
    MLP, is embedded; `apart` (HyperFormer): one for attention and one for MLPs, e without the place. Embeddings are N(0, 1) of
    64 numbers, W₁ 128 wide, e 64, every linear N(0, 0.01²) with zero biases, gelu by tanh; Down D/32 wide: rabeehk/hyperformer
    (56b0f99, T5; norms of the base train, Adam's learning rate 3e-4, label smoothing 0.1, tasks drawn by size^(1/10)). The
    start is close to the frozen model and not it, as LN's weight and bias are drawn. A forward serves one task:
    `set_task(model, "flowers")` before it, for all threads; the choice is saved. `vision_peft fit --data several/a+b+c` trains
    on several data sets, with a head each, and names the tasks; recipe hyperformer. 2,619,928 parameters on ViT-B/16 with its
    norms, and 64 for each further task.

    Args:
        tasks: their names.
        task: which is on at first; the first one where None.
        form: `shared` or `apart`.
        reduction: of the width D.
        embedding: width of the embeddings of task, block and place.
        hidden, projected: widths of the MLP and of e.
        norms: whether the base's norms train.
    """

    tasks: Sequence[str] = ("task",)
    task: str | None = None
    form: Literal["shared", "apart"] = "shared"
    reduction: Count = 32
    embedding: Count = 64
    hidden: Count = 128
    projected: Count = 64
    norms: bool = True
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("stream", "gates")
    not_mergeable: ClassVar[str | None] = "a bottleneck with an activation and a norm is no change of a weight."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (
        ({}, 2_619_928), ({"norms": False, "tasks": ("a", "b", "c")}, 2_581_656),
    )  # fmt: skip

    @classmethod
    def examples(cls) -> Iterable[Method]:
        small: dict[str, Any] = dict(reduction=8, embedding=4, hidden=8, projected=6, tasks=("a", "b"))
        return cls(**small), cls(**small, form="apart", norms=False, task="b", tower="image")

    def install(self, plan: Plan) -> None:
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise PeftError("hyperformer takes the names of its tasks, each once and one at least.")
        chosen = self._number(self.tasks[0] if self.task is None else self.task)
        for tower, paths in plan.towers():
            dim, options = plan.stream(tower).width, plan.options_at(paths[0])
            if dim < self.reduction:
                raise PeftError(
                    f"hyperformer's adapters are D/{self.reduction} wide, and the stream's width D is {dim}."
                )

            def make(dim: int = dim, depth: int = len(paths), options: dict[str, Any] = options) -> nn.Module:
                return Hypernetwork(self, dim, depth, chosen, options)

            net = plan.shared(f"hypernetwork_{tower}" if tower else "hypernetwork", make)
            for sublayer, *_ in plan.sublayers(("attn", "mlp"), 1):
                if sublayer.tower == tower:
                    plan.add_behind(sublayer, Generated(net, sublayer.block, int(sublayer.kind == "attn")))
        if self.norms:
            for place, _ in plan.places([role for role in plan.anatomy.roles() if "norm" in role]):
                module = plan.model.get_submodule(place.module)
                plan.train(place.module, *(n for n in ("weight", "bias") if module._parameters.get(n) is not None))

    def for_tasks(self, tasks: Sequence[str]) -> "HyperFormer":
        return replace(self, tasks=tuple(tasks)) if self.tasks == HyperFormer.tasks else self

    def serve(self, model: nn.Module, task: str) -> None:
        number = self._number(task)
        for shared in own_grafts(model, self, Shared):
            shared.value.chosen.fill_(number)

    def _number(self, task: str) -> int:
        if task not in self.tasks:
            raise PeftError(
                f'hyperformer has no task "{task}"{nearest(task, list(self.tasks))} (it has: {", ".join(self.tasks)}).'
            )
        return list(self.tasks).index(task)


def set_task(model: nn.Module, task: str, name: str | None = None) -> nn.Module:
    """From the next forward on, the adaptation of that name, or each that has tasks, serves this one.

    Raises:
        PeftError: it has no such task, or there is none with tasks.
    """
    inner = unwrapped(model)
    methods = [adaptation.method for adaptation in pick(inner, name) if isinstance(adaptation.method, HyperFormer)]
    if not methods:
        raise PeftError("this model has no adaptation with tasks: adapt it with hyperformer first.")
    for method in methods:
        method._number(task)
    for method in methods:
        method.serve(inner, task)
    return model


def _linear(inner: int, out: int, options: dict[str, Any]) -> nn.Linear:
    made = nn.Linear(inner, out, **options)
    nn.init.normal_(made.weight, std=0.01)
    nn.init.zeros_(made.bias)
    return made


class Hypernetwork(nn.Module):
    """(block, place) to Down (h D) with its bias, Up (D h) with its bias, LN's weight and bias, for the task that is on."""

    chosen: Tensor

    def __init__(self, method: HyperFormer, dim: int, depth: int, chosen: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.dim, self.width, places = dim, dim // method.reduction, 1 if method.form == "shared" else 2
        self.tasks = nn.Parameter(torch.randn(len(method.tasks), method.embedding, **options))
        self.blocks = nn.Parameter(torch.randn(depth, method.embedding, **options))
        embedded = places == 1
        self.places = nn.Parameter(torch.randn(2, method.embedding, **options)) if embedded else None
        self.first = _linear((2 + embedded) * method.embedding, method.hidden, options)
        self.second = _linear(method.hidden, method.projected, options)
        self.norm = nn.LayerNorm(method.projected, eps=1e-6, **options)
        sizes = dict(
            down=self.width * dim, down_bias=self.width, up=dim * self.width, up_bias=dim, weight=dim, bias=dim
        )
        self.made = nn.ModuleList(
            nn.ModuleDict({name: _linear(method.projected, size, options) for name, size in sizes.items()})
            for _ in range(places)
        )
        self.register_buffer("chosen", torch.tensor(chosen, device=options["device"]))

    def forward(self, block: int, place: int) -> dict[str, Tensor]:
        parts = [self.tasks.index_select(0, self.chosen.view(1))[0], self.blocks[block]]
        parts += [] if self.places is None else [self.places[place]]
        e = self.norm(self.second(F.relu(self.first(torch.cat(parts)))))
        made: Any = self.made[place if self.places is None else 0]
        found = {name: linear(e) for name, linear in made.items()}
        return found | {"down": found["down"].view(self.width, self.dim), "up": found["up"].view(self.dim, self.width)}


class Generated(nn.Module):
    """y (… D) to LN(Up gelu(Down y)) of a block and place (0 the MLP, 1 attention), by the hypernetwork."""

    def __init__(self, net: Reference, block: int, place: int) -> None:
        super().__init__()
        self.net, self.block, self.place = net, block, place

    def forward(self, y: Tensor) -> Tensor:
        made = self.net()(self.block, self.place)
        y = F.linear(match(y, made["down"]), made["down"], made["down_bias"])
        y = F.linear(F.gelu(y, approximate="tanh"), made["up"], made["up_bias"])
        return F.layer_norm(y, y.shape[-1:], made["weight"], made["bias"])
