"""Every recipe and preset is taken by `fit`, and what a published one says is what its source has."""

from typing import Any

import pytest
import yaml

from peft_core.config_files import list_configs
from peft_core.registry import make_method
from vision_peft.fit import fit

RECIPES = list_configs("recipe", "vision")


def settings(recipe: str) -> dict[str, Any]:
    stated = yaml.safe_load(RECIPES[recipe].read_text(encoding="utf-8"))
    given: dict[str, Any] = {"recipe": recipe, "data": "world/motion/axis" if "video" in stated else "digits"}
    return fit.resolve([("", given if "method" in stated else given | {"method": "linear"})])


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_taken(recipe: str) -> None:
    assert settings(recipe)["method"].build()


# linziyi96/st-adapter's scripts and models, adapt-image-models' configs, AdaptFormer's main_video.py, SSF's train_scripts
HALF = {"dropout": 0.5}
PUBLISHED: dict[str, dict[str, Any]] = {
    "k400/st_adapter": dict(positions=("mlp",), width=384, augment="jitter_flip", windows="st_adapter", video=HALF),
    "ssv2/st_adapter": dict(positions=("attn", "mlp"), augment="timm_randaug_crop", windows="st_adapter", video=HALF),
    "k400/aim": dict(per_block=3, scale=0.5, windows="mmaction", video=HALF, weight_decay=0.05),
    "hmdb51/aim": dict(per_block=3, windows="mmaction", video=HALF),
    "ssv2/aim": dict(per_block=4, scale=1.0, label_smoothing=0.1, augment="randaug_crop", video=HALF),
    "ssv2/adaptformer": dict(dropout=0.0, augment="multi_scale", video={"head": "batch_norm", "norm": "fresh"}),
    "hmdb51/adaptformer": dict(dropout=0.0, augment="multi_scale", optimizer="sgd", video={"head": "batch_norm"}),
    "loftq": dict(rank=64, lr=3e-4, weight_decay=0.1, warmup=0.03),
    "sora": dict(lr=1.2e-3, weight_decay=0.1, warmup=0.06),
    "lq_lora": dict(rank=64, alpha=16.0, budget=2.75, lr=2e-5, weight_decay=0.0),
    "gated_prompt": dict(tokens=100, gate=5.0, lr=0.1, weight_decay=0.0, optimizer="sgd", warmup=0.1),
    "ada_mix": dict(bottleneck=16, experts=4, init="normal", lr=3e-4, weight_decay=0.1, warmup=0.06),
    "meft": dict(variant="layer", bottleneck=8, lr=5e-4, weight_decay=0.1, batch_size=16, warmup=0.06),
    "vtab_ssf": dict(lr=5e-3, weight_decay=5e-5, drop_path=0.0, batch_size=64, init_std=0.02),
}


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_published_recipes(recipe: str) -> None:
    found = settings(recipe)
    method, sampling = found["method"].build(), found["data"].open().train
    for key, value in PUBLISHED[recipe].items():
        if key == "video":
            assert found["video"].options.items() >= value.items()
        elif key == "windows":
            assert sampling.sampling.windows == value
        else:
            assert (getattr(method, key) if hasattr(method, key) else found[key]) == value, key
    assert found["final_lr"] == 0.0  # all of these go down to nothing


def test_presets_of_prompts() -> None:
    assert make_method("vpt_shallow").dropout == 0.0 and make_method("vpt_deep").dropout == 0.1  # type: ignore[attr-defined]
