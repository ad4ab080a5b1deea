"""What starts from the training pictures' features: caches, class means, probes whose start the pictures decide."""

from typing import Annotated, Any

import torch
from torch import Tensor, nn

from clip_peft.learner import Learner
from peft_core.errors import PeftError

ALPHAS = [round(10 ** (i / 10), 3) for i in range(-10, 17)]  # 0.1 … 40
BETAS = [round(10 ** (i / 10), 3) for i in range(-10, 18)]  # 0.1 … 50
"""One grid of a cache's strengths and sharpnesses for all data; the published code has ranges of each data set's own."""


class Remembering(Learner):
    """A learner that is told the training pictures' features, K views of N pictures, before it can name anything."""

    sized: tuple[str, ...] = ()
    """Its tensors with as many rows as there are pictures (or classes), empty until `remember`."""

    def remember(self, features: Tensor, labels: Tensor) -> None:
        """Start from image features N E (or views K N E), as `encode` gives them, and labels N.

        Raises:
            PeftError: other numbers of features and labels, labels beyond the classes, features of another model.
        """
        features = features[None] if features.dim() == 2 else features
        width = self.clip.projection.weight.shape[0] if not self.projected else self.clip.tower.features
        if features.shape[-1] != width:
            raise PeftError(
                f"{self.method.name} got features of {features.shape[-1]} numbers, but this model's have {width}: they "
                "are another model's, so encode the pictures with this one."
            )
        if not features.is_meta and (features.shape[1] != labels.shape[0] or int(labels.max()) >= len(self.names)):
            raise PeftError(
                f"{self.method.name} got {features.shape[1]} features and {labels.shape[0]} labels up to {int(labels.max())} for "
                f"{len(self.names)} classes: give one label below that number for each feature."
            )
        with torch.no_grad():
            self.start(features.detach(), labels.to(features.device))

    def start(self, features: Tensor, labels: Tensor) -> None:
        """`remember` with views K N E."""
        raise NotImplementedError(f"{type(self).__name__} must define start(features, labels)")

    def check_started(self) -> None:
        if not len(getattr(self, self.sized[0])):
            raise PeftError(
                f"{self.method.name}'s cache is empty: call learner.remember(features, labels) with training pictures."
            )

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *rest: Any) -> None:
        for name in self.sized:
            own: Tensor = getattr(self, name)
            value = state.get(prefix + name)
            if value is not None and value.shape != own.shape:
                empty = torch.empty_like(value, dtype=own.dtype, device=own.device)
                setattr(self, name, nn.Parameter(empty, own.requires_grad) if isinstance(own, nn.Parameter) else empty)
        super()._load_from_state_dict(state, prefix, *rest)  # type: ignore[misc]


def sums_of_classes(
    rows: Annotated[Tensor, "N E"], labels: Annotated[Tensor, "N"], classes: int
) -> tuple[Tensor, Tensor]:
    """C E: the sums of each class's rows, and C: how many it has."""
    ones = rows.new_ones(len(rows))
    return rows.new_zeros(classes, rows.shape[1]).index_add_(0, labels, rows), rows.new_zeros(classes).index_add_(
        0, labels, ones
    )
