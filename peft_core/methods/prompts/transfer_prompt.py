from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from peft_core.method import Method
from peft_core.methods.prompts.spot import SPoT
from peft_core.parts.tokens.neurons import active, first_layers, overlap
from peft_core.passes.losses import of_first_batch
from peft_core.values import Count


@dataclass(frozen=True, kw_only=True)
class TransferPrompt(SPoT):
    """Transferable prompt tuning: prompt tuning that starts from the prompt of the task whose prompt wakes the same neurons.

    Su et al., "On Transferability of Prompt Tuning for Natural Language Processing", NAACL 2022. As `spot` in all but nearness:
    ON, the overlap of activated neurons, cos(a, a'), a being 1 for each number above 0 behind the first layers of the last three
    MLPs and 0 elsewhere, which tells transfer better than cosines of the prompts do (thunlp/Prompt-Transferability, 2d15de5).
    There a prompt stands before a mask token alone, with no input, and the mask's states are read; a picture model needs
    pictures: here the first batch of the task's own, and the first token of each (the class token, where there is one). The
    projector of prompts between models is left out. 76,800 parameters on ViT-B/16.

    Args:
        measure: of nearness: `neurons`, or one of `spot`'s.
        layers: MLPs whose neurons count, the last ones.
    """

    measure: Literal["neurons", "average", "flat", "per_token", "distance"] = "neurons"  # type: ignore[assignment]
    layers: Count = 3
    vit_b16: ClassVar = (({}, 76_800),)

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(tokens=2),)

    def near(
        self, model: nn.Module, own: Sequence[nn.Parameter], found: Mapping[str, list[Tensor]], losses: Iterable[Tensor]
    ) -> dict[str, float]:
        if self.measure != "neurons":
            return super().near(model, own, found, losses)
        layers, near = first_layers(model, self, self.layers), dict[str, float]()
        losses = of_first_batch(losses)  # every pass over the data may begin with other pictures
        here = active(model, layers, losses)
        for source, values in found.items():
            with torch.no_grad():
                for prompts, value in zip(own, values, strict=True):
                    prompts.copy_(value)
            near[source] = overlap(here, active(model, layers, losses))
        return near
