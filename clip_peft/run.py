"""A finished run in use: the model with its prompt or adapter, and the classes it names, which may be others."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft_data.frames import framed
from peft_data.pictures import read_picture
from torch import Tensor

from clip_peft import saved
from clip_peft.open_vocabulary import NamesReadAlike, OpenVocabulary
from clip_peft.tasks import task_of
from clip_peft.tasks.classes import Classes
from clip_peft.text.prompts import checked_names, places_among
from clip_peft.training.evaluate import batches_of_logits, test_augment
from clip_peft.training.features import Encoder
from peft_core.jobs.hub.open_clip_models import load_backbone
from peft_core.jobs.hub.precision import in_few_bits, methods_of
from peft_core.jobs.runs.process import tell
from peft_core.jobs.runs.use import TaskRun, read_trained


@dataclass(frozen=True)
class ClipRun(TaskRun):
    """What `peft_core.load_run` gives for a CLIP run: `.model` is an OpenVocabulary, `.with_classes(names)` names others.

    Args:
        encoder: the model's image side.
        places: where the classes stand among those that the model names, if these are more.
        task: what is said of logits, for these names; of one class a picture where it is left out.
    """

    encoder: Encoder = None  # type: ignore[assignment]
    places: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.task is None:
            object.__setattr__(self, "task", Classes(self.class_names))

    @property
    def top(self) -> int:
        """How many classes `predict` tells of a picture, where nobody says."""
        return self.task.top

    @property
    def alone(self) -> bool:
        """Whether one name may stand alone: each is there or not, whatever the others."""
        return self.task.calibrates

    @property
    def whole(self) -> OpenVocabulary:
        """`model`, by its class."""
        return self.encoder.whole

    def with_classes(self, class_names: Sequence[str]) -> ClipRun:
        """The same run for these classes.

        Raises:
            PeftError: what was learnt belongs to the classes it was learnt on, and these are others.
        """
        names = checked_names(class_names)
        whole = self.whole
        places = places_among(names, whole.class_names)
        task = self.task.renamed(names, places_among(names, self.task.class_names))
        if whole.learner.method.of_classes and places is not None:
            places = None if places == tuple(range(len(whole.class_names))) else places
            return dataclasses.replace(self, class_names=names, places=places, task=task)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always", NamesReadAlike)
            whole.set_classes(names)
        for warning in heard:
            tell(f"note: {warning.message}")
        return dataclasses.replace(self, class_names=names, places=None, task=task)

    def ready(self, image: Any) -> Tensor:
        """A picture at the model's size; in its own frame, uint8 3 h w, where the method cuts views from it."""
        pixels = self.pixels(image)
        if test_augment(self.encoder.whole.method) == "none":
            return pixels
        if isinstance(image, Tensor):
            return image
        frame = read_picture(Path(image) if isinstance(image, str) else image)
        return torch.from_numpy(np.array(frame)).permute(2, 0, 1)

    @torch.no_grad()
    def _predict(self, batch: list[Tensor]) -> Iterator[Any]:
        augment = test_augment(self.encoder.whole.method)
        pictures = torch.stack(batch) if augment == "none" else framed(batch, self.fit, augment)
        for logits in batches_of_logits(self.encoder, pictures):
            logits = logits if self.places is None else logits[:, list(self.places)]
            yield from self.said(logits)


def open_run(path: Path) -> ClipRun:
    """Loads a run folder of `clip_peft fit`; on a GPU where there is one.

    Raises:
        PeftError: no run folder, no adapter in it yet, or weights that cannot be reached.
    """
    config, card, common = read_trained(path, "clip_peft")
    model, tokenizer, _ = load_backbone(config["backbone"])
    model = in_few_bits(model, config, *methods_of(card))
    whole = saved.load(model, path / "adapter", tokenizer, memory=config.get("text_memory"))
    whole.to("cuda" if torch.cuda.is_available() else "cpu")
    encoder = Encoder(whole, common["mean"], common["std"])
    common["class_names"] = whole.class_names if card["class_names"] else ()
    task = task_of(whole.method).of_card(card)
    return ClipRun(whole, card=card, config=config, encoder=encoder, task=task, **common)
