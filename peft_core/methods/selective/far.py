from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.method import Method, Plan
from peft_core.parts.selection.importance import has_bias, moved_by_training, sites_of
from peft_core.parts.sparse import OfMatrices
from peft_core.values import Count, Positive, Range


class OfNodes(OfMatrices):
    """The entries of some hidden nodes of a feed-forward layer: rows of what leads there, with their biases, or columns of what
    leads away."""

    network: int
    nodes: int
    leads_away: bool

    def score(self, moved: Sequence[Tensor]) -> Tensor:
        """By node, what moved of its weights."""
        weight = moved[0].reshape(self.shape)
        if self.leads_away:
            return weight.sum(0)
        return sum(part.reshape(-1, self.nodes).sum(0) for part in (weight.sum(1), *moved[1:]))  # type: ignore[return-value]

    def rows_of(self, nodes: Tensor) -> Tensor:
        """A gated layer's nodes have a row in each of its parts."""
        parts = torch.arange(self.shape[0] // self.nodes, device=nodes.device)
        return (parts[:, None] * self.nodes + nodes).flatten()

    def of(self, nodes: Tensor) -> Tensor:
        """Flat indices of all entries of these nodes."""
        out, inner = self.shape
        if self.leads_away:
            return (torch.arange(out, device=nodes.device)[:, None] * inner + nodes).flatten()
        return (self.rows_of(nodes)[:, None] * inner + torch.arange(inner, device=nodes.device)).flatten()


@dataclass(frozen=True, kw_only=True)
class FAR(Method):
    """FAR: of each feed-forward layer the hidden nodes that a short fine-tuning moves most train, with all their weights.

    Vucetic et al., "Efficient Fine-Tuning of BERT Models on the Edge", ISCAS 2022 (Freeze And Reconfigure). `prepare` trains the
    feed-forward layers for a few steps ("priming") and puts them back; a node's score is the L1 norm of what changed of its
    weights, its row of fc1 with its bias and its column of fc2, and the largest of each layer are the learners. No code was
    released: the share and the priming here are ours, and the nodes are not sorted into one slice of their own, which saved the
    paper memory and time; learners train as W' = W + scatter(values). A share of 0.1 trains 5,662,308 parameters on ViT-B/16.

    Args:
        share: of a layer's hidden nodes, rounded; one at the least.
        priming: steps of the short fine-tuning.
        priming_lr: its learning rate (AdamW).
    """

    share: Annotated[float, Range(above=0, most=1)] = 0.1
    priming: Count = 20
    priming_lr: Positive = 1e-4
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 12 * 307 * (768 + 1 + 768)),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(share=0.1, priming=2, priming_lr=1e-3),)

    def install(self, plan: Plan) -> None:
        places = [place for place, _ in plan.places(("fc1", "fc2"), change=OfNodes)]
        ends = [place for place in places if place.role == "fc2"]
        for place in places:
            out, inner = plan.shape(place)
            # a layer's fc1 and fc2 share the longest path
            network = ends.index(place) if place in ends else _nearest(place.module, [end.module for end in ends])
            nodes = plan.shape(ends[network])[1]
            if place.role == "fc1" and out % nodes:
                raise PeftError(f"far finds {nodes} inputs at {ends[network].module} for the {out} of {place.module}.")
            count = max(1, int(self.share * nodes + 0.5))
            rows = count * (out // nodes)
            biased = place.role == "fc1" and has_bias(plan, place)
            change = OfNodes(
                plan.stock(place), place.rows, (out, inner), count * out if place.role == "fc2" else rows * inner,
                rows if biased else None,
            )  # fmt: skip
            change.network, change.nodes, change.leads_away = network, nodes, place.role == "fc2"
            plan.change_weight(place, change)

    def prepare(self, model: nn.Module, losses: Iterable[Tensor]) -> None:
        moved = moved_by_training(model, self, losses, self.priming_lr, self.priming, self.priming)
        grafts: list[OfNodes] = [site.graft for site in sites_of(model, self)]  # type: ignore[misc]
        scores: dict[int, Tensor] = {}
        for graft, parts in zip(grafts, moved, strict=True):
            scores[graft.network] = scores.get(graft.network, 0) + graft.score(parts)
        for graft in grafts:
            count = max(1, int(self.share * graft.nodes + 0.5))
            learners = scores[graft.network].topk(count).indices.sort().values
            graft.choose(graft.of(learners), None if graft.bias_indices is None else graft.rows_of(learners))


def _nearest(module: str, others: Sequence[str]) -> int:
    def common(other: str) -> int:
        pairs = zip(module.split("."), other.split("."), strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b), 99)

    return max(range(len(others)), key=lambda n: common(others[n]))
