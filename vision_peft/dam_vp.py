"""`vision_peft dam_vp`: meta-training, on several data sets, of the prompt that DAM-VP's clusters begin with."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peft_data.augment import Augmentation, augmentation, normalise
from peft_data.chance import generator_of
from peft_data.video.clips import Clips
from safetensors.torch import save
from torch import Tensor, nn

from peft_core.errors import PeftError
from peft_core.files import write_files
from peft_core.jobs.cli.command import command
from peft_core.jobs.data import Data
from peft_core.jobs.runs.process import tell
from peft_core.values import Count, NotNegative, Positive, Seed, Share
from vision_peft.methods.dam_vp import DAMVP, PROMPT, OfClusters, centres_of


class Seen(NamedTuple):
    """A data set: its head, and the means of its clusters (K D)."""

    head: nn.Linear
    centres: Tensor


class Reptile:
    """P ← P + ε · mean_k (P_k − P) over the clusters k of all data sets, where the P_k, which begin as P, and the data set's
    head take `turns` steps of SGD on one batch of each data set.

    Args:
        model: gives features, B D, of pictures with the frame in front of it; nothing else of it trains.
        step: ε.
        head_lr: of the heads, which go on from step to step.
        weight_decay: of the P_k.
    """

    def __init__(
        self, model: nn.Module, frame: OfClusters, sets: Sequence[Seen], *, turns: int, step: float, head_lr: float,
        weight_decay: float,
    ) -> None:  # fmt: skip
        self.model, self.frame, self.sets = model, frame, sets
        self.turns, self.step, self.head_lr, self.weight_decay = turns, step, head_lr, weight_decay
        self.prompt = frame.prompts[0].detach().clone()

    def update(self, batches: Sequence[tuple[Tensor, Tensor]], lr: float) -> float:
        """One step of P, with that rate of the P_k; the mean loss with the new P on the same pictures (x B 3 H W, labels B)."""
        moved, clusters = torch.zeros_like(self.prompt), 0
        for seen, (x, labels) in zip(self.sets, batches, strict=True):
            moved += self._moved(seen, x, labels, lr)
            clusters += len(seen.centres)
        self.prompt += self.step * moved / clusters
        with torch.no_grad():
            self._begin(1)
            losses = [self._loss(seen, x, labels) for seen, (x, labels) in zip(self.sets, batches, strict=True)]
        return torch.stack(losses).mean().item()

    def _begin(self, clusters: int) -> None:
        self.frame.prompts.data = self.prompt.repeat(clusters, 1, 1)

    def _loss(self, seen: Seen, x: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(seen.head(self.model(x).to(seen.head.weight.dtype)), labels)

    def _moved(self, seen: Seen, x: Tensor, labels: Tensor, lr: float) -> Tensor:
        """Σ_k (P_k − P) after the steps of one data set."""
        frame = self.frame
        self._begin(len(seen.centres))
        frame.centres = seen.centres
        frame.routed = frame.routes(x)
        optimizer = torch.optim.SGD([
            {"params": [frame.prompts], "lr": lr, "weight_decay": self.weight_decay},
            {"params": seen.head.parameters(), "lr": self.head_lr},
        ])  # fmt: skip
        try:
            for _ in range(self.turns):
                optimizer.zero_grad()
                self._loss(seen, x, labels).backward()
                optimizer.step()
        finally:
            frame.routed = None
        return (frame.prompts.detach() - self.prompt).sum(0)


class Batches:
    """A batch of each data set at every step: a function of the seed, the epoch and the step; as many steps an epoch as the
    smallest set has batches."""

    def __init__(
        self, sets: Sequence[tuple[Tensor, Tensor]], batch_size: int, augment: Augmentation, seed: int,
        read: Callable[[Tensor], Tensor],
    ) -> None:  # fmt: skip
        self.sets, self.batch_size, self.augment, self.seed, self.read = sets, batch_size, augment, seed, read

    def __len__(self) -> int:
        return min(math.ceil(len(labels) / self.batch_size) for _, labels in self.sets)

    def of(self, number: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Those of one data set: pictures as the model reads them, and labels."""
        pictures, labels = self.sets[number]
        chance = generator_of(self.seed, number, epoch)
        for rows in torch.randperm(len(labels), generator=chance).split(self.batch_size):
            x = self.read(self.augment(pictures[rows], chance))
            yield x, labels[rows].to(x.device)

    def __call__(self, epoch: int) -> Iterator[tuple[tuple[Tensor, Tensor], ...]]:
        return zip(*(self.of(number, epoch) for number in range(len(self.sets))), strict=False)


@command("vision")
def dam_vp(
    *, data: Data, out: str, backbone: str = "reference", border: Count | None = None, threshold: Positive = 10.0,
    pictures: Count = 1000, epochs: Count = 200, batch_size: Count = 128, lr: Positive = 1.0, turns: Count = 4,
    step: Share = 0.5, head_lr: Positive = 0.1, weight_decay: NotNegative = 1e-4, augment: str = "jitter_flip", seed: Seed = 0,
) -> dict[str, Any]:  # fmt: skip
    """Meta-train, on several data sets, the prompt of pixels that DAM-VP's clusters begin with, by Reptile.

    As in shikiw/DAM-VP (meta-training/main_ht.py): sun397, stl10, fru92, veg200, pets and eurosat there. Kept is the prompt
    of the lowest loss after a step; there one of those is chosen by test accuracy on flowers. Then: fit --method dam_vp
    --method.source OUT.

    Args:
        data: The data sets, several/a+b+c; their train splits.
        out: The folder of the prompt.
        backbone: As for fit.
        border: As for the method.
        threshold: As for the method.
        pictures: That are clustered, of each data set.
        epochs: Each of as many steps as the smallest data set has batches.
        batch_size: Pictures of each data set, at every step.
        lr: Of the clusters' prompts within a step, along a cosine to 0 over all steps; 0.5 for Swin and MoCo v3 there.
        turns: Of SGD within a step, on the same pictures.
        step: How far the prompt goes to the mean of what the clusters' became.
        head_lr: Of each data set's linear head.
        weight_decay: Of the clusters' prompts within a step.
        augment: As for fit, of pictures at the model's size.
        seed: Of everything that is drawn.
    """
    from peft_core import adapt
    from peft_core.jobs.hub.reach import absolute
    from peft_core.jobs.runs.optimising import rate_at
    from peft_core.parts.tokens.pixels import frame_of
    from vision_peft.backbones import load_backbone
    from vision_peft.derived import free_folder
    from vision_peft.hyper_tuning import by_set

    folder, change, opened = free_folder(out), augmentation(augment), data.open()
    if opened.task not in ("classify", "several") or isinstance(opened.train, Clips):
        raise PeftError(f"dam_vp meta-trains on pictures with classes, and {opened.name} is of others: give another.")
    torch.manual_seed(seed)
    model, about = load_backbone(backbone, 0)
    method = DAMVP(border=border, threshold=threshold).for_run(about.mean, about.std, 0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    adapt(model.to(device), method, train_head=False)
    model.eval()
    frame = frame_of(model, method)

    def read(batch: Tensor) -> Tensor:
        return normalise(batch.to(device), about.mean, about.std)

    decoded = data.decode(opened.train, about.input_size)
    sets = list(by_set(opened, decoded.images, decoded.labels))
    batches, seen = Batches(sets, batch_size, change, seed, read), []
    for number, (_, labels) in enumerate(sets):
        found: list[Tensor] = []
        for x, _ in batches.of(number, -1):
            found.append(frame.features(x).float())
            if sum(map(len, found)) >= pictures:
                break
        features = torch.cat(found)[:pictures]
        head = nn.Linear(features.shape[1], int(labels.max()) + 1, device=device)
        seen.append(Seen(head, centres_of(features, threshold)))
    reptile = Reptile(model, frame, seen, turns=turns, step=step, head_lr=head_lr, weight_decay=weight_decay)
    steps, done, best, kept, losses = epochs * len(batches), 0, math.inf, reptile.prompt, []
    for epoch in range(epochs):
        for given in batches(epoch):
            done += 1
            losses.append(reptile.update(given, lr * rate_at(done, 0, steps)))
            if losses[-1] < best:
                best, kept = losses[-1], reptile.prompt.clone()
        if not math.isfinite(losses[-1]):
            raise PeftError(f"the loss became {losses[-1]} in epoch {epoch + 1}: try a lower --lr than {lr:g}.")
        if (epoch + 1) % max(1, epochs // 10) == 0:
            tell(f"epoch {epoch + 1}/{epochs}  loss {losses[-1]:.3f}, at best {best:.3f}")
    card = {
        "backbone": absolute(backbone), "data": data.absolute().plain(), "border": frame.border, "size": list(frame.size),
        "clusters": [len(each.centres) for each in seen], "steps": steps, "loss": {"first": losses[0], "best": best},
    }  # fmt: skip
    write_files(
        folder,
        {
            PROMPT: save({"prompt": kept.cpu().contiguous()}),
            "prompt.json": (json.dumps(card, indent=2) + "\n").encode(),
        },
    )
    print(f"{folder}: the prompt of the lowest loss, {best:.3f} ({losses[0]:.3f} after the first of {steps} steps)")
    return card
