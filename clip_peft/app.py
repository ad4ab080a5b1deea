"""`clip_peft app`: the page of a CLIP model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clip_peft.text.prompts import asked_for
from peft_core.jobs.app.command import page
from peft_core.jobs.app.parts import Field, Part, Shown, predictions


def use(run: Any, pictures: Sequence[str], given: Mapping[str, Any]) -> Shown:
    names = [name.strip() for name in (given["classes"] or "").split(",") if name.strip()]
    run = run.with_classes(asked_for(names, alone=run.alone) if names else run.card["class_names"])
    return predictions(run, pictures, int(given["top"] or run.top))


PART = Part(
    program="clip_peft",
    module="clip_peft.commands",
    about="Classes by name: a frozen CLIP model with a learnt prompt or adapter.",
    takes_pictures=True,
    verb="Predict",
    use=use,
    use_fields=(
        Field("classes", "Names to choose from, with commas between them", info="empty: those it was trained on"),
        Field("top", "Classes a picture", 3, number=True),
    ),
    fit_fields=(
        Field("data", "Folder of pictures, one folder a class; or the name of a data set", "world/open/objects"),
        Field("method", "Method", "coop", ("coop", "taskres", "clip_adapter", "tip_adapter_f", "promptsrc", "lora", "zero_shot")),
        Field("backbone", "Backbone", "reference", ("reference", "ViT-B-32/openai", "ViT-B-16/openai"),
              info="reference knows drawn pictures only; photographs want a real checkpoint, fetched at its first use"),
        Field("shots", "Pictures a class", 16, number=True, info="0: all"),
        Field("epochs", "Epochs", 20, number=True, info="0: the recipe's"),
        Field("lr", "Learning rate", None, number=True, info="empty: the recipe's"),
    ),
)  # fmt: skip

app = page(
    "clip",
    PART,
    "pictures on a finished run, classes by name, training",
)
