"""MeZO: training by two forwards a step, without gradients."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from peft_core.errors import PeftError


class MeZO(torch.optim.Optimizer):
    """θ ← θ − lr (g z + wd θ), g = (L(θ + ε z) − L(θ − ε z)) / 2ε, z normal, drawn again from its seed where it is needed.

    Malladi et al., "Fine-Tuning Language Models with Just Forward Passes", NeurIPS 2023; princeton-nlp/MeZO (552cb1b). A step
    keeps what inference keeps. `step(closure)` calls the closure twice: it gives the loss of one batch, the same each time, of a
    model in eval mode (dropout off), and calls no backward. Vectors take no weight decay there: give them a group of their own
    (`lifecycle.parameter_groups` does). The rate is constant there; ε is 1e-3 for full fine-tuning and LoRA, 1e-1 for prefixes,
    lr 1e-6, 1e-4 and 1e-2, over 100,000 steps of 64 samples (RoBERTa-large). The seed of step t is of (seed, t), so that a run
    that goes on from `state_dict` draws what it would have drawn.

    A classifier's new head is trained by the same steps, as everything that trains.

    Args:
        eps: ε.
        seed: of all z.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 1e-6, eps: float = 1e-3, weight_decay: float = 0.0, seed: int = 0
    ) -> None:
        if eps <= 0:
            raise PeftError(f"MeZO's eps must be above 0, not {eps}.")
        super().__init__(params, dict(lr=lr, eps=eps, weight_decay=weight_decay, seed=seed, steps=0))

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """The loss at θ + ε z."""
        if closure is None:
            raise PeftError(
                "MeZO computes losses itself: call step(closure), where closure() gives the loss of the batch."
            )
        first = self.param_groups[0]
        seed = self.seed_of(first["seed"], first["steps"])
        self._move(seed, 1)
        loss = closure()
        self._move(seed, -2)
        other = closure()
        self._move(seed, 1)
        if loss is None or other is None:
            raise PeftError("MeZO's closure must give the loss of the batch.")
        apart = float(loss - other)
        for group, parameter, z in self._drawn(seed):
            slope = apart / (2 * group["eps"])
            if group["weight_decay"]:
                parameter.sub_(group["lr"] * (slope * z + group["weight_decay"] * parameter))
            else:
                parameter.sub_(z, alpha=group["lr"] * slope)
        for group in self.param_groups:
            group["steps"] += 1
        return loss

    @staticmethod
    def seed_of(seed: int, step: int) -> int:
        return (seed * 1_000_003 + step * 2_654_435_761 + 12_345) % 2**63

    def _drawn(self, seed: int) -> Iterator[tuple[dict[str, Any], Tensor, Tensor]]:
        """Every parameter with its z."""
        generators: dict[torch.device, torch.Generator] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                if (device := parameter.device) not in generators:
                    generators[device] = torch.Generator(device).manual_seed(seed)
                z = torch.empty_like(parameter, memory_format=torch.contiguous_format)
                yield group, parameter, z.normal_(generator=generators[device])

    def _move(self, seed: int, times: float) -> None:
        for group, parameter, z in self._drawn(seed):
            parameter.add_(z, alpha=times * group["eps"])
