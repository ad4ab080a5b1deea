"""`vision_peft app`: the page of a classifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peft_core.jobs.app.command import page
from peft_core.jobs.app.parts import Field, Part, Shown, predictions


def use(run: Any, pictures: Sequence[str], given: Mapping[str, Any]) -> Shown:
    return predictions(run, pictures, int(given["top"] or 1))


PART = Part(
    program="vision_peft",
    module="vision_peft.commands",
    about="Classes of pictures: a frozen model adapted with few parameters.",
    takes_pictures=True,
    verb="Predict",
    use=use,
    use_fields=(Field("top", "Classes a picture", 3, number=True),),
    fit_fields=(
        Field("data", "Folder of pictures, one folder a class; or the name of a data set", "digits"),
        Field("method", "Method", "lora", ("lora", "lora_all", "adaptformer", "adapter_plus", "ssf", "bitfit", "linear")),
        Field("backbone", "Backbone", "reference", ("reference", "vit_base_patch16_224.augreg_in21k"),
              info="reference knows drawn pictures only; photographs want a real checkpoint, fetched at its first use"),
        Field("epochs", "Epochs", 5, number=True),
        Field("lr", "Learning rate", None, number=True, info="empty: the recipe's"),
        Field("augment", "Augmentation", None, ("none", "flip", "crop_flip"), info="empty: the recipe's"),
    ),
)  # fmt: skip

app = page(
    "vision",
    PART,
    "drop pictures on a finished run, train one from a folder",
)
