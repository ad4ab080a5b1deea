"""Small transformer blocks cut from large ones: the rows and columns that matter most."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ROLES = ("norm1", "q", "k", "v", "proj", "norm2", "fc1", "fc2")


@dataclass
class Layer:
    """A layer's weight and bias, and how much each entry of the weight matters."""

    weight: Tensor
    bias: Tensor | None
    score: Tensor

    def columns(self, kept: Tensor) -> "Layer":
        return Layer(self.weight[..., kept], self.bias, self.score[..., kept])

    def rows(self, kept: Tensor) -> "Layer":
        return Layer(self.weight[kept], None if self.bias is None else self.bias[kept], self.score[kept])


def most(scores: Tensor, count: int) -> Tensor:
    """The rows of the largest sums of |scores|, in their order."""
    return scores.abs().flatten(1).sum(1).topk(count).indices.sort().values


def cut(blocks: Sequence[Mapping[str, Layer]], first: Tensor, width: int, hidden: int) -> list[dict[str, Layer]]:
    """Blocks of a width and an MLP's width, each cut as the one before leaves its channels.

    A layer keeps the columns that the one before it kept as rows. q, k and v keep the same rows, those of the largest L1 norm of
    the product of their scores; every other layer its own. A norm keeps what the stream before it has.

    Args:
        blocks: of each block its `ROLES`.
        first: the channels of the stream that are kept at first.
    """
    kept, found = first, []
    for block in blocks:
        one: dict[str, Layer] = {"norm1": _norm(block["norm1"], kept)}
        attended = {role: block[role].columns(kept) for role in "qkv"}
        kept = most(attended["q"].score * attended["k"].score * attended["v"].score, width)
        one |= {role: layer.rows(kept) for role, layer in attended.items()}
        for role, count in (("proj", width), ("norm2", 0), ("fc1", hidden), ("fc2", width)):
            if not count:
                one[role] = _norm(block[role], kept)
                continue
            layer = block[role].columns(kept)
            kept = most(layer.score, count)
            one[role] = layer.rows(kept)
        found.append(one)
    return found


def _norm(norm: Layer, kept: Tensor) -> Layer:
    return Layer(norm.weight[kept], None if norm.bias is None else norm.bias[kept], norm.score[kept])


def write(block: object, layers: Mapping[str, Layer]) -> None:
    """Into a `SmallBlock` of that width."""
    qkv = [layers[role] for role in "qkv"]
    biases = [torch.zeros(len(each.weight)).to(each.weight) if each.bias is None else each.bias for each in qkv]
    joined = Layer(torch.cat([each.weight for each in qkv]), torch.cat(biases), qkv[0].score)
    for name, layer in {**{role: layers[role] for role in ROLES if role not in "qkv"}, "qkv": joined}.items():
        module = getattr(block, name)
        module.weight.copy_(layer.weight)
        if layer.bias is None:
            module.bias.zero_()
        else:
            module.bias.copy_(layer.bias)
