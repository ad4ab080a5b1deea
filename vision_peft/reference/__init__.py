"""The small ViT that ships with the package: a plain timm model, trained on the drawn world, no download needed.

Its card (`card.json`, here `CARD`) holds the timm arguments, input size, mean and standard deviation, how it was
trained and what it reached on held-out pretraining pictures.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from timm import create_model
from timm.models import VisionTransformer

from peft_core.files import read_shipped

FOLDER = Path(__file__).parent
WEIGHTS = FOLDER / "vit.safetensors"
CARD: dict[str, Any] = json.loads((FOLDER / "card.json").read_text(encoding="utf-8"))


def load(num_classes: int = 0, pretrained: bool = True, **timm_kwargs: Any) -> VisionTransformer:
    """The reference ViT as a plain timm model in float32, in train mode as timm returns it.

    Args:
        num_classes: width of a new head; 0 for none (features B × 96).
        pretrained: load the shipped weights; otherwise timm's initialisation.
        timm_kwargs: further arguments of the timm model, for example `drop_path_rate=0.1`; they go over the card's.

    Raises:
        ValueError: the weight file is missing, damaged, or does not fit the arguments.
    """
    model = cast(VisionTransformer, create_model(**(CARD["timm"] | timm_kwargs), num_classes=num_classes))
    if pretrained:
        state = read_shipped(WEIGHTS, "python -m vision_peft.reference.train")
        wrong = [
            name
            for name, value in model.state_dict().items()
            if not name.startswith("head.") and (name not in state or state[name].shape != value.shape)
        ]
        if wrong:
            raise ValueError(
                f"the reference weights do not fit this model, first at {wrong[0]!r}; leave out the arguments "
                f"{sorted(timm_kwargs)} or pass pretrained=False"
            )
        model.load_state_dict(state, strict=False)
    cfg = {
        "mean": tuple(CARD["mean"]),
        "std": tuple(CARD["std"]),
        "input_size": tuple(CARD["input_size"]),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "num_classes": num_classes,
        "architecture": "reference",
        "tag": "",
    }
    vars(model).update(pretrained_cfg=cfg, default_cfg=cfg)
    return model
