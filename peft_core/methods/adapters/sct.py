from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.grafts.branch import Branch
from peft_core.grafts.graft import match
from peft_core.lifecycle import labelled, own_grafts
from peft_core.method import Method, Plan
from peft_core.values import Positive, Widths


@dataclass(frozen=True, kw_only=True)
class SCT(Method):
    """Salient channel tuning: behind every attention x_I ← x_I + s·(W x_I + b) on K chosen channels I of the stream.

    Zhao et al., "SCT: A Simple Baseline for Parameter-Efficient Fine-Tuning via Salient Channels", IJCV 2023. `prepare` chooses
    for each block the K channels of the largest norm in the frozen model: the norm over all pictures and patches of a class, then
    its mean over classes (one class where batches tell none). W (K, K) is truncated normal at 0.02, b zero, K = 96: not identical
    at step 0. s of each task from 0.1 to 1; wd and lr too are chosen for each task, 100 epochs with 10 of warm-up, batch 64, drop
    path 0.1: zhaohengyuan1/SCT (01e8f1e; recipe vtab_sct), where on some tasks x_I itself is scaled too (`scaleonx`, left out
    here). Its channels are those of one pass over pictures without augmentation, here of one over training batches.
    111,744 parameters on ViT-B/16, 12,672 at K = 32.

    Args:
        channels: K, one number, or one a block where 0 means absent.
        scale: s.
    """

    channels: Widths = 96
    scale: Positive = 1.0
    identity: ClassVar[bool] = False
    needs: ClassVar[tuple[str, ...]] = ("gates",)
    not_mergeable: ClassVar[str | None] = "it changes the stream itself, which no weight makes alone."
    vit_b16: ClassVar[tuple[tuple[dict[str, Any], int], ...]] = (({}, 111_744), ({"channels": 32}, 12_672))

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(channels=6),)

    def install(self, plan: Plan) -> None:
        for sublayer, count, dim in plan.sublayers(("attn",), self.channels):
            prefix = plan.stream_of(sublayer).prefix
            change = Salient(dim, count, self.scale, prefix, plan.options_at(sublayer.norm))
            plan.add_after(sublayer, change)

    def prepare(self, model: nn.Module, losses: Iterable[Tensor]) -> None:
        changes: list[Salient] = [graft.change for graft in own_grafts(model, self, Branch)]
        sums: list[dict[int, Tensor]] = [{} for _ in changes]
        with torch.no_grad():
            for change in changes:
                change.seen = []
            try:
                for _, labels in labelled(losses) or ((loss, None) for loss in losses):
                    for change, found in zip(changes, sums, strict=True):
                        squares, change.seen = change.seen, []
                        of_samples = torch.cat(squares or [])
                        told = (
                            [0] * len(of_samples)
                            if labels is None or len(labels) != len(of_samples)
                            else labels.tolist()
                        )
                        for label, row in zip(told, of_samples, strict=True):
                            found[label] = row + found[label] if label in found else row
            finally:
                for change in changes:
                    change.seen = None
        for change, found in zip(changes, sums, strict=True):
            change.choose(torch.stack(list(found.values())).sqrt().mean(0))


class Salient(nn.Module):
    """x -> s·(W x_I + b) in the channels I, 0 elsewhere."""

    channels: Tensor

    def __init__(self, dim: int, count: int, scale: float, prefix: int, options: dict[str, Any]) -> None:
        super().__init__()
        self.map = nn.Linear(count, count, **options)
        nn.init.trunc_normal_(self.map.weight, std=0.02)
        nn.init.zeros_(self.map.bias)
        self.register_buffer("channels", torch.full((count,), -1, device=options["device"]))
        self.dim, self.scale, self.prefix, self.chosen = dim, scale, prefix, False
        self.seen: list[Tensor] | None = None

    def choose(self, score: Tensor) -> None:
        self.channels.copy_(score.topk(len(self.channels)).indices.sort().values)
        self.chosen = True

    def forward(self, x: Tensor) -> Tensor:
        if self.seen is not None:
            rows = x.detach().flatten(1, -2)[:, self.prefix if x.dim() == 3 else 0 :]
            self.seen.append(rows.float().square().sum(1))
            return torch.zeros_like(x)
        if not self.chosen:
            raise PeftError(
                "which channels are salient is not chosen yet: call peft_core.lifecycle.prepare(model, losses), with the losses "
                "of some batches, before training or using the model."
            )
        change = self.map(match(x[..., self.channels], self.map.weight)) * self.scale
        return x.new_zeros((), dtype=change.dtype).expand_as(x).index_add(-1, self.channels, change)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        given = state_dict.get(f"{prefix}channels")
        if isinstance(given, Tensor):
            if bool((given >= self.dim).any()) or bool((given.diff() <= 0).any() and (given >= 0).any()):
                raise PeftError(f"the channels of a saved sct must ascend and stay below {self.dim:,}.")
            self.chosen = bool((given >= 0).all())
        super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[arg-type]
