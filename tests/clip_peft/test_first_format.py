"""Adapters of the first format open and say what they said, or are refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from clip_peft import OpenVocabulary, saved
from peft_core import PeftError
from tests.clip_peft.models import (
    NAMES,
    clip,
    close,
    pictures,
    siglip,
    tokenizer,
)


def of_first_format(whole: OpenVocabulary, folder: Path, tensors: dict[str, torch.Tensor], **settings: Any) -> Path:
    """An adapter as the first format has it: these tensors, these settings."""
    saved.save(whole, folder)
    card = json.loads((folder / "adapter.json").read_text(encoding="utf-8"))
    card["format"] = 1
    card["backbone"].pop("configuration")
    card["adaptations"][0]["settings"] = settings
    (folder / "adapter.json").write_text(json.dumps(card), encoding="utf-8")
    save_file(tensors, folder / "adapter.safetensors")
    return folder


def unit(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(x, dim=-1)


@pytest.mark.parametrize("template", ["a photo of a {}.", ["a photo of a {}.", "a {} in the snow."]])
@torch.no_grad()
def test_former_residuals_and_probes_say_what_they_said(template: Any, tmp_path: Path):
    texts = OpenVocabulary(clip(), "zero_shot", NAMES, tokenizer(), template=template).class_weights()
    faces = unit(clip().encode_image(pictures()))
    x = 0.3 * torch.randn(texts.shape, generator=torch.Generator().manual_seed(1))
    made = OpenVocabulary(clip(), "taskres", NAMES, tokenizer())
    folder = of_first_format(made, tmp_path / "taskres", {"residual": x}, alpha=0.5, template=template)
    whole = saved.load(clip(), folder, tokenizer())
    close(whole(pictures()), 100 * faces @ unit(texts + 0.5 * x).T)
    probe = OpenVocabulary(clip(), "linear_probe", NAMES, tokenizer())
    folder = of_first_format(probe, tmp_path / "probe", {"weight": texts + x}, template=template)
    whole = saved.load(clip(), folder, tokenizer())
    close(whole(pictures()), 100 * faces @ (texts + x).T)
    assert not whole.method.normalise
    saved.save(whole, tmp_path / "again")
    close(saved.load(clip(), tmp_path / "again", tokenizer())(pictures()), whole(pictures()))


def test_former_contexts_open_and_former_prompts_behind_ln_pre_are_refused(tmp_path: Path):
    short = OpenVocabulary(clip(), "kgcoop", NAMES, tokenizer(), context=2, init=None)
    tensors = short.learner.state_dict()
    folder = of_first_format(short, tmp_path / "kgcoop", tensors, context=2, init="a photo of a", weight=8.0)
    close(saved.load(clip(), folder, tokenizer())(pictures()), short.eval()(pictures()))
    deep = OpenVocabulary(clip(), "maple", NAMES, tokenizer(), depth=2)
    folder = of_first_format(deep, tmp_path / "maple", deep.learner.state_dict(), depth=2, context=2)
    model = clip()
    with pytest.raises(PeftError, match="image prompts stood behind LayerNorm: train it again"):
        saved.load(model, folder, tokenizer())
    assert all(p.requires_grad for p in model.parameters())
    deep = OpenVocabulary(siglip(), "maple", NAMES, tokenizer(), depth=2)  # a tower without such a norm
    folder = of_first_format(deep, tmp_path / "siglip", deep.learner.state_dict(), depth=2, context=2)
    close(saved.load(siglip(), folder, tokenizer())(pictures()), deep.eval()(pictures()))


def test_a_card_that_asks_for_more_than_a_text_holds_is_refused_before_it_is_made(tmp_path: Path):
    whole = OpenVocabulary(clip(), "coop", NAMES, tokenizer(), context=4)
    for settings, message in (
        ({"context": 10**9}, "a text of this model holds 24 tokens"),
        ({"context": -1}, "1 or more, not -1"),
    ):
        folder = of_first_format(whole, tmp_path / "coop", whole.learner.state_dict(), **settings)
        with pytest.raises(PeftError, match=message):
            saved.load(clip(), folder, tokenizer())
    deep = OpenVocabulary(clip(), "promptsrc", NAMES, tokenizer(), depth=2, template="{}.")
    folder = of_first_format(deep, tmp_path / "deep", {}, depth=2, image_tokens=10**9)
    with pytest.raises(PeftError, match="image_tokens must be in"):
        saved.load(clip(), folder, tokenizer())
