"""Every architecture of timm and open_clip has an anatomy, found on the meta device: a sample here, all in the slow part."""

import contextlib
from collections import Counter

import open_clip
import pytest
import timm
import torch

from peft_core.anatomies import describe, submodule

SAMPLE = 211
"""Every so many names are tried in the fast part."""


def _described(name: str, make) -> str | None:
    """The family of a model, None where nothing is known; every place and step of it is a module there."""
    with torch.device("meta"):
        model = make(name)
    anatomy = describe(model)
    if anatomy is None:
        return None
    for place in anatomy.places:
        module = submodule(model, place.module)
        assert module is not None and place.weight in module._parameters, (name, place)
        rows = module._parameters[place.weight].shape[0]  # type: ignore[union-attr]
        assert place.rows is None or 0 <= place.rows[0] < place.rows[1] <= rows, (name, place)
    for step in anatomy.sublayers:
        for path in (step.norm, step.body, step.out, step.entry, *step.into, *([step.gate] if step.gate else [])):
            assert submodule(model, path) is not None, (name, path)
    anatomy.expand(anatomy.default_targets)
    return anatomy.family


@pytest.mark.parametrize("every", [SAMPLE, pytest.param(1, marks=pytest.mark.slow)])
def test_timm(every: int):
    names = timm.list_models()[::every]
    found = Counter(_described(name, lambda name: timm.create_model(name)) for name in names)
    print(found.most_common())
    assert found[None] == 0, f"{found[None]} of {len(names)} architectures are unknown"


@pytest.mark.parametrize("every", [70, pytest.param(1, marks=pytest.mark.slow)])
def test_open_clip(every: int):
    found: Counter = Counter()
    for name in open_clip.list_models()[::every]:
        config = open_clip.get_model_config(name)
        if "hf_model_name" in config["text_cfg"]:  # its configuration comes from the hub
            continue
        config = {key: value for key, value in config.items() if not key.startswith("_")}
        cls = open_clip.CustomTextCLIP if config.pop("custom_text", False) else open_clip.CLIP
        if "multimodal_cfg" in config:
            cls = open_clip.CoCa
        config["vision_cfg"].pop("timm_model_pretrained", None)
        with contextlib.suppress(KeyError):
            config.pop("init_logit_scale")
        found[_described(name, lambda name, cls=cls, config=config: cls(**config))] += 1
    print(found.most_common())
    assert found[None] == 0 and sum(found.values())
