"""The small Stable Diffusion that ships with the package: a stock pipeline folder, trained on the drawn world.

64 px pictures, 16 × 16 × 4 latents, prompts about shapes, colours, textures, sizes and backgrounds
(`peft_data.world.captioned`). Its card (`card.json`, here `CARD`) says how it was trained and how well its pictures
obey their captions.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffusers import StableDiffusionPipeline

FOLDER = Path(__file__).parent
PIPELINE = FOLDER / "pipeline"
_CARD = FOLDER / "card.json"
CARD: dict[str, Any] = json.loads(_CARD.read_text(encoding="utf-8")) if _CARD.is_file() else {}


def load(folder: str | Path = PIPELINE, **kwargs: Any) -> StableDiffusionPipeline:
    """The reference model as a plain `StableDiffusionPipeline` in float32.

    Args:
        folder: another folder that `python -m diffusion_peft.reference.train` wrote.
        kwargs: of `StableDiffusionPipeline.from_pretrained`, for example `torch_dtype=torch.bfloat16`.

    Raises:
        ValueError: the folder or one of its weight files is missing.
    """
    missing = [name for name in ("model_index.json", *_WEIGHTS) if not (Path(folder) / name).is_file()]
    if missing:
        raise ValueError(
            f"the reference model {folder} lacks {missing[0]}; reinstall the package or train it again with "
            "python -m diffusion_peft.reference.train"
        )
    return StableDiffusionPipeline.from_pretrained(str(folder), **kwargs)


_WEIGHTS = ("unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors",
            "text_encoder/model.safetensors")  # fmt: skip
