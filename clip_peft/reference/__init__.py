"""The small CLIP that ships with the package: a plain open_clip model, trained on the drawn world, no download needed.

This folder is one that open_clip itself opens (`open_clip.create_model("local-dir:…/clip_peft/reference")`); only the
vocabulary must be named: `tokenizer()`. The card (`card.json`) says how it was trained and what it reaches.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
from open_clip.transform import PreprocessCfg

from peft_core.files import read_shipped

FOLDER = Path(__file__).parent
WEIGHTS = FOLDER / "open_clip_model.safetensors"
CONFIG = FOLDER / "open_clip_config.json"
CARD = FOLDER / "card.json"
VOCABULARY = FOLDER / "vocabulary.txt.gz"


def load(pretrained: bool = True) -> open_clip.CLIP:
    """The reference CLIP as a plain `open_clip.CLIP` in float32: pictures 40 × 40, features 128, texts up to 77 tokens.

    Args:
        pretrained: load the shipped weights; otherwise open_clip's initialisation.

    Raises:
        ValueError: the weight file is missing or damaged.
    """
    config = json.loads(CONFIG.read_text(encoding="utf-8"))
    model = open_clip.CLIP(**config["model_cfg"])
    visual: Any = model.visual
    preprocess = PreprocessCfg(size=visual.image_size, **config["preprocess_cfg"])
    open_clip.set_model_preprocess_cfg(model, asdict(preprocess))
    if pretrained:
        model.load_state_dict(read_shipped(WEIGHTS, "python -m clip_peft.reference.train"))
    return model


def tokenizer() -> open_clip.SimpleTokenizer:
    """The model's byte-pair tokenizer: the words of the drawn world are one token each, any other text is more."""
    return open_clip.SimpleTokenizer(bpe_path=str(VOCABULARY))


def card() -> dict[str, Any]:
    """How the model was trained, and its accuracies."""
    return json.loads(CARD.read_text(encoding="utf-8"))
