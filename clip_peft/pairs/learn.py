"""The LightningModule that trains both towers on pairs, each step against all captions of its batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft_data.augment import augmentation, normalise
from peft_data.batches import Batch, generator_of
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clip_peft.frozen import Clip
from clip_peft.pairs.losses import Loss, alike, sigmoid_loss, softmax_loss
from clip_peft.pairs.measure import Split
from peft_core import lifecycle
from peft_core.errors import PeftError
from peft_core.jobs.runs.learning import Learning

LARGEST_SCALE = math.log(100)
"""Of a logit scale that trains, as CLIP's authors bound it."""


class PairLearning(Learning):
    """A contrastive loss over the batch, its negatives gathered from all processes.

    With `chunk` the towers run on so many pairs at a time: features first, without what backward needs, then, once the loss
    has given their gradients, each chunk again with it (Gao et al., "Scaling Deep Contrastive Learning Batch Size under
    Memory Limited Setup", 2021: GradCache). Gradients are those of one piece; a step costs one more forward.

    All chance in a step (caption, augmentation, dropout) is a function of (seed, process, step).

    Args:
        clip: the adapted model.
        split: what is trained on.
        look: mean and std of pictures.
        loss: softmax, or sigmoid where the model has a logit bias.
        chunk: pairs at a time; 0 runs all at once.
        rates: the learning rates of the image tower and of the text tower.
        learning: `Learning`'s settings.
    """

    def __init__(
        self, clip: Clip, split: Split, look: tuple[Sequence[float], Sequence[float]], steps: int, *, loss: Loss, chunk: int,
        augment: str, rates: tuple[float, float], **learning: Any,
    ) -> None:  # fmt: skip
        super().__init__(steps, **learning)
        self.model, self.clip, self.split, self.look = clip.model, clip, split, look
        self.kind, self.chunk, self.augment, self.tower_rates = loss, chunk, augmentation(augment), rates
        if loss == "sigmoid" and getattr(clip.model, "logit_bias", None) is None:
            raise PeftError(
                "the sigmoid loss needs a model with a logit bias, as SigLIP's have, and this one has none: give --loss softmax."
            )

    def adapted(self) -> dict[str, nn.Module]:
        return {"model": self.model}

    def configure_optimizers(self) -> dict[str, Any]:
        """`Learning`'s, each group divided into the image tower's parameters and the others."""
        towers = {id(p) for p in self.model.visual.parameters()}
        found = []
        for group in lifecycle.parameter_groups(self.model, self.lr, self.weight_decay):
            for inside, rate in zip((True, False), self.tower_rates, strict=True):
                own = [p for p in group["params"] if (id(p) in towers) is inside]
                if own:
                    found.append(group | {"params": own, "lr": group["lr"] * rate / self.lr})
        return self.optimised(found)

    def on_train_batch_start(self, batch: Batch, index: int) -> None:
        step = self.trainer.current_epoch * int(self.trainer.num_training_batches) + index
        self.chance = generator_of(self.seed, self.global_rank, step)
        torch.manual_seed(self.chance.initial_seed())

    def training_step(self, batch: Batch, index: int) -> Tensor:
        images = self.augment(batch.images, self.chance)
        own = [self.split.own[row] for row in batch.indices.tolist()]
        draws = torch.rand(len(own), generator=self.chance).tolist()
        captions = torch.tensor([each[int(draw * len(each))] for each, draw in zip(own, draws, strict=True)])
        return self.count(self.mean_of(lambda: self.contrast(images, captions, batch.indices)))

    def contrast(self, images: Tensor, captions: Tensor, pictures: Tensor) -> Tensor:
        """The loss of uint8 pictures B 3 H W, their captions B, and which pictures they are, B."""
        parts = torch.arange(len(images)).split(self.chunk or len(images))
        of_images = torch.cat([self.again(lambda part=part: self.image_features(images[part])) for part in parts])
        of_texts = torch.cat([self.again(lambda part=part: self.clip_texts(captions[part])) for part in parts])
        ids = torch.stack((captions, pictures.cpu())).to(of_images.device)
        of_images, of_texts, ids = self.gathered(of_images, of_texts, ids)
        return self.loss_of(of_images, of_texts, alike(ids[1], ids[0]))

    def again(self, encode: Callable[[], Tensor]) -> Tensor:
        """Features, whose way is run again for its backward where there are chunks."""
        return checkpoint(encode, use_reentrant=False) if self.chunk and torch.is_grad_enabled() else encode()  # type: ignore

    def image_features(self, images: Tensor) -> Tensor:
        return self.clip.image_features(normalise(images.to(self.device), *self.look))

    def clip_texts(self, rows: Tensor) -> Tensor:
        return self.split.captions.features(rows)

    def gathered(self, images: Tensor, texts: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of all processes, in their order. The gradient of the own ones is multiplied by their number, since that of the
        parameters is a mean over processes."""
        count = self.trainer.world_size if self._trainer is not None else 1
        if count == 1:
            return images, texts, ids
        all_ids = self.all_gather(ids).movedim(0, 1).flatten(1)  # type: ignore[union-attr]
        found = []
        for own in (images, texts):
            pieces = list(self.all_gather(own.detach()))
            pieces[self.global_rank] = own.detach() + count * (own - own.detach())
            found.append(torch.cat(pieces))
        return found[0], found[1], all_ids

    def loss_of(self, images: Tensor, texts: Tensor, truth: Tensor) -> Tensor:
        """In float32 whatever the autocast."""
        with torch.autocast(images.device.type, enabled=False):
            scale = self.clip.scale.float()
            if self.kind == "sigmoid":
                return sigmoid_loss(images.float(), texts.float(), truth, scale, self.model.logit_bias.float())
            return softmax_loss(images.float(), texts.float(), truth, scale)

    def note(self, index: int) -> None:
        if self.model.logit_scale.requires_grad:
            with torch.no_grad():
                self.model.logit_scale.clamp_(0, LARGEST_SCALE)
        super().note(index)

    def scored(self) -> str:
        row = next((row for row in reversed(self.history) if "val_loss" in row), None)
        return "" if row is None else f"  val loss {row['val_loss']:.4f}, R@1 {row['text_to_image_r1']:.3f}"
