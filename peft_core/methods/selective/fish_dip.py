import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.lifecycle import Progress, memory, singly
from peft_core.method import Method
from peft_core.parts.selection.budget import largest
from peft_core.parts.selection.importance import Scored, gradient_scores, sites_of
from peft_core.values import Count, Range


@dataclass(frozen=True, kw_only=True)
class FishDip(Scored):
    """FISH-DIP: the weights of the largest Fisher information of the worst samples train, chosen again and again.

    Das et al., "Unified Low-Resource Sequence Labeling by Sample-Aware Dynamic Sparse Finetuning", EMNLP 2023. Before training
    and every 100 steps the losses of all training samples are taken, and the entries of the largest Σ (∂L/∂w)² over those of the
    highest loss, at the weights as they are by then, train from there on; W' = W + scatter(values), values starting at 0. What
    leaves the mask keeps its change, so that a file holds the union of the masks: 1 % of ViT-B/16's, 856,466 parameters, at the
    start, and more with every choice. Settings of psunlpgroup/FISH-DIP@a8aa5ae, which takes from 3 to 25 samples, a tenth
    of the number of batches, and counts the head among the 1 %; here the head trains whole beside. It trains by Adafactor at 1e-2
    without momentum; here the optimiser is yours, and what it remembers of an entry goes with the entry.

    `prepare` must be called with the losses of single samples (`lifecycle.Losses`), and `lifecycle.after_step` with them, too.

    Args:
        samples: of the highest loss, that the choice is made by.
        every: steps from one choice to the next.
        biases: whether they may be chosen too, and count.
    """

    share: Annotated[float, Range(above=0, most=1)] = 0.01
    samples: Count = 25
    every: Count = 100
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 856_466),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(share=0.05, samples=1),)

    def prepares_again(self, progress: float) -> bool:
        if not isinstance(progress, Progress):
            raise PeftError("fish_dip counts steps: call after_step with lifecycle.Progress(step, steps).")
        return progress.step % self.every == 0 and progress.step < progress.steps

    def prepare(self, model: nn.Module, losses: Iterable[Tensor]) -> None:
        kept = memory(model, self)
        scores = gradient_scores(model, self, self._worst(losses), torch.square, as_changed=bool(kept))
        flat = [part for parts in scores for part in parts]
        chosen = iter(largest(flat, self.budget([part.numel() for part in flat])))
        kept["trains"], kept["stays"] = [], []
        for site, parts in zip(sites_of(model, self), scores, strict=True):
            graft, unions, starts = site.graft, [], []
            for indices, values, new in zip(
                graft.entries(), graft.parameters(), [next(chosen) for _ in parts], strict=True
            ):
                old = indices.long() if graft.chosen else indices[:0].long()
                unions.append(torch.cat((old, new)).unique())
                starts.append(values.new_zeros(len(unions[-1])))
                starts[-1][torch.searchsorted(unions[-1], old)] = values.detach()[: len(old)]
                kept["trains"].append(torch.isin(unions[-1], new))
            graft.choose(*unions, *[None] * (2 - len(unions)), *starts)
            kept["stays"] += starts

    def _worst(self, losses: Iterable[Tensor]) -> Iterator[Tensor]:
        """The highest losses, of samples one by one; as many graphs are held as are asked for."""
        found: list[tuple[float, int, Tensor]] = []
        for number, loss in enumerate(singly(losses)):
            entry = (loss.item(), -number, loss)
            (heapq.heappush if len(found) < self.samples else heapq.heappushpop)(found, entry)
        yield from (loss for *_, loss in sorted(found, key=lambda entry: -entry[1]))

    def _values(self, model: nn.Module) -> list[nn.Parameter]:
        return [values for site in sites_of(model, self) for values in site.graft.parameters()]

    def before_step(self, model: nn.Module) -> None:
        for values, trains in zip(self._values(model), memory(model, self).get("trains", ()), strict=False):
            if values.grad is not None:
                values.grad.mul_(trains.to(values.grad.device))

    def after_step(self, model: nn.Module, progress: float) -> None:
        kept = memory(model, self)
        for n, values in enumerate(self._values(model) if kept else ()):
            trains, stays = kept["trains"][n].to(values.device), kept["stays"][n].to(values)
            values.copy_(torch.where(trains, values, stays))  # the optimiser's moments still push what left the mask
