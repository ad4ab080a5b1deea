import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core.anatomies import Place, anatomy_of
from peft_core.errors import PeftError
from peft_core.grafts.graft import is_plain, match
from peft_core.grafts.side import Side
from peft_core.lifecycle import own_grafts, singly
from peft_core.method import Method, Plan
from peft_core.parts.cut_blocks import ROLES, Layer, cut, most, write
from peft_core.parts.selection.importance import squared_gradients
from peft_core.parts.transformer import SmallBlock
from peft_core.places import Where
from peft_core.values import Count, Positive


@dataclass(frozen=True, kw_only=True)
class LST(Method):
    """Ladder side-tuning: s ← block_i(μ_i s + (1 − μ_i) Down_i h_i) beside the frozen blocks; the head reads Up s alone.

    Sung, Cho, Bansal, "LST: Ladder Side-Tuning for Parameter and Memory Efficient Transfer Learning", NeurIPS 2022. h_i is what
    block i gives, detached: the frozen model never runs backward. s starts as Down h₀, h₀ being what the first block
    receives; μ_i = sigmoid(α_i/T), α_i = 0, T = 0.1; block_i is a transformer block of width D/reduction, Up s goes where
    the last block's output went, to the model's own last norm and head. Every fourth block has no rung:
    ylsung/Ladder-Side-Tuning (1798e82; T5-base: 1, 2, 3, 5, 6, 7, 9, 10, 11). There the side's blocks are cut from the frozen
    ones (`start="fisher"`): of each layer the rows of the largest squared gradients, summed over 1,024 samples one by one, q, k
    and v by the product of theirs, and the columns that the layer before kept, from the embedding on. That takes a backward pass
    through the whole model for each sample, so by default they start at random. 1,819,305 parameters on ViT-B/16.

    Args:
        reduction: of the width D.
        skip: blocks whose index this divides have no rung, but for a model of one block; None: all have.
        temperature: T.
        heads: of a side block, as many as its width allows up to these; a base model's 12, as there. At inference attention
            is most of a ladder's time, and fewer heads take less of it.
        start: of the side's blocks: `random`, cut by the weights' own `magnitude`, or by `fisher` information (lr 3e-3 there).
        samples: that fisher sees.
    """

    reduction: Count = 8
    skip: Count | None = 4
    temperature: Positive = 0.1
    heads: Count = 12
    start: Literal["random", "magnitude", "fisher"] = "random"
    samples: Count = 1024
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("stream",)
    not_mergeable: ClassVar[str | None] = "a network beside the frozen one is no change of its weights."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 1_819_305),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(reduction=4, skip=None), cls(reduction=4, skip=None, tower="image", start="fisher", samples=2)

    def install(self, plan: Plan) -> None:
        for tower, blocks in plan.towers():
            stream = plan.stream(tower)
            chosen = [
                i for _, i, *_ in plan.chosen_blocks(1, 1, tower) if len(blocks) == 1 or not self.skip or i % self.skip
            ]
            if stream.width // self.reduction < 1 or not chosen:
                raise PeftError(f"lst finds no rung of a width above 0: {len(blocks)} blocks, D {stream.width}.")
            if self.start != "random":
                _Stock(plan, tower)
            options = plan.options_at(blocks[0])
            net = Ladder(stream.width, stream.width // self.reduction, chosen, stream.causal, self, options)
            plan.add_side(blocks, net, blocks[-1], stream)

    def wants(self, call: str) -> bool:
        return super().wants(call) and (call != "prepare" or self.start != "random")

    def prepare(self, model: nn.Module, losses: Iterable[Any]) -> None:
        where, sides = Where(model, anatomy_of(model), self), list(own_grafts(model, self, Side))
        stock = [_Stock(where, tower) for tower, _ in where.towers()]
        tensors = [each for one in stock for each in one.scored()]
        scores = {id(tensor): tensor.detach().abs() for tensor in tensors}
        if self.start == "fisher":
            scores = squared_gradients(sides, tensors, islice(singly(losses), self.samples))
        with torch.no_grad():
            for one, side in zip(stock, sides, strict=True):
                net, width = side.net, side.net.up.in_features
                cuts = cut(*one.layers(scores, width), width, 4 * width)
                for rung, block in zip(net.rungs, net.blocks, strict=True):
                    write(block, cuts[rung])


class _Stock:
    """The layers of a tower's frozen blocks, by their roles.

    Raises:
        PeftError: a block has another form.
    """

    def __init__(self, where: Where, tower: str | None) -> None:
        self.where, places = where, [place for place in where.anatomy.places if place.tower == tower]
        self.embed = next((place for place in places if place.role == "patch_embed"), None)
        self.blocks: list[dict[str, Place]] = []
        for number in range(where.depth(tower)):
            here = [place for place in places if place.block == number and place.role in ROLES]
            roles = {place.role: place for place in here}
            sizes = {where.shape(roles[role])[0] for role in "qkv" if role in roles}
            plain = all(map(is_plain, map(self._parameter, here)))
            gated = "fc1" in roles and "fc2" in roles and where.shape(roles["fc1"])[0] != where.shape(roles["fc2"])[1]
            if gated or sorted(roles) != sorted(ROLES) or len(here) > len(roles) or len(sizes) > 1 or not plain:
                raise PeftError(
                    f"lst cuts blocks of attention with heads of its own and a plain MLP, and block {number} of this "
                    f"{where.anatomy.family} is another, or quantised: take start=random."
                )
            self.blocks.append(roles)

    def scored(self) -> list[Tensor]:
        whole = [place for roles in self.blocks for place in roles.values()] + ([self.embed] if self.embed else [])
        return list({id(tensor): tensor for tensor in map(self._parameter, whole)}.values())

    def _parameter(self, place: Place) -> Tensor:
        return self.where.model.get_submodule(place.module)._parameters[place.weight]  # type: ignore[return-value]

    def layers(self, scores: dict[int, Tensor], width: int) -> tuple[list[dict[str, Layer]], Tensor]:
        """The blocks' layers, and the channels of the stream that matter most at first."""
        blocks = [{role: self._layer(place, scores) for role, place in roles.items()} for roles in self.blocks]
        if self.embed is not None:
            return blocks, most(scores[id(self._parameter(self.embed))], width)
        return blocks, most(sum(blocks[0][role].score for role in "qkv").T, width)  # type: ignore[union-attr]

    def _layer(self, place: Place, scores: dict[int, Tensor]) -> Layer:
        rows, weight = slice(*(place.rows or (None,))), self._parameter(place)
        module = self.where.model.get_submodule(place.module)
        bias = None if place.bias is None else module._parameters.get(place.bias)
        return Layer(weight[rows], None if bias is None else bias[rows], scores[id(weight)][rows])


class Ladder(nn.Module):
    """Features [h₀, …, h_L], each B N D, to Up s."""

    def __init__(self, dim: int, width: int, rungs: list[int], causal: bool, method: LST, options: dict[str, Any]):
        super().__init__()
        self.rungs, self.temperature = rungs, method.temperature
        self.first = nn.Linear(dim, width, **options)
        self.downs = nn.ModuleList(nn.Linear(dim, width, **options) for _ in rungs)
        self.blocks = nn.ModuleList(SmallBlock(width, math.gcd(width, method.heads), causal, options) for _ in rungs)
        self.gates = nn.Parameter(torch.zeros(len(rungs), **options))
        self.up = nn.Linear(width, dim, **options)

    def forward(self, features: list[Tensor]) -> Tensor:
        s = self.first(match(features[0], self.up.weight))
        for i, gate, down, block in zip(self.rungs, self.gates, self.downs, self.blocks, strict=True):
            mu = torch.sigmoid(gate / self.temperature)
            read = down(match(features[i + 1], self.up.weight))
            s = block(read + mu * (s - read))  # keeps s − read for the backward pass, not both
        return self.up(s)

    def form(self) -> tuple[Any, ...]:
        """What ladders must have alike for `together`."""
        return self.up.weight.dtype, self.up.weight.device, *self.rungs

    @staticmethod
    def together(ladders: "Sequence[Ladder]") -> "Ladders":
        return Ladders(ladders)


class Ladders:
    """T ladders that read the same features, for inference: all their Downs of a rung are one matrix, which is a copy."""

    def __init__(self, ladders: Sequence[Ladder]) -> None:
        self.ladders, self.widths = ladders, [each.up.in_features for each in ladders]
        self.first = _one_matrix([each.first for each in ladders])
        self.downs = [_one_matrix(layers) for layers in zip(*(each.downs for each in ladders), strict=True)]

    def __call__(self, features: list[Tensor], tokens: int | None = None) -> list[Tensor]:
        """Up s of each, of all tokens or of the first ones alone."""
        rungs = self.ladders[0].rungs
        reads = zip(
            *(self._reads(features[i + 1], *down) for i, down in zip(rungs, self.downs, strict=True)), strict=True
        )
        starts = self._reads(features[0], *self.first)
        return [self._climbed(*each, tokens) for each in zip(self.ladders, starts, reads, strict=True)]

    def _reads(self, h: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        return F.linear(h.to(weight.dtype), weight, bias).split(self.widths, -1)

    @staticmethod
    def _climbed(ladder: Ladder, s: Tensor, reads: Iterable[Tensor], tokens: int | None) -> Tensor:
        mus, last = torch.sigmoid(ladder.gates / ladder.temperature), ladder.blocks[-1]
        for mu, read, block in zip(mus, reads, ladder.blocks, strict=True):
            s = block.inferred(torch.lerp(read, s, mu), tokens if block is last else None)  # type: ignore[operator]
        return ladder.up(s)


@torch.no_grad()
def _one_matrix(layers: Sequence[nn.Linear]) -> tuple[Tensor, Tensor]:
    """W (Σ d, D) and b (Σ d) of linears that read the same."""
    return torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
