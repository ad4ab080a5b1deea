"""Masks: where they lie, what is refused, and what they do to a loss."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffusion_peft.commands.fit import fit
from diffusion_peft.data.buckets import fit_to
from diffusion_peft.data.masks import read_mask, weights_of
from diffusion_peft.data.pictures import open_pictures
from diffusion_peft.training.noise import denoising_loss
from peft_core.errors import PeftError
from tests.diffusion_peft.conftest import SHORT, draw_pictures


def half(height: int, width: int) -> Image.Image:
    """White to the left."""
    grey = np.zeros((height, width), dtype=np.uint8)
    grey[:, : width // 2] = 255
    return Image.fromarray(grey)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = Path(draw_pictures(tmp_path / "10_toy", [(16, 16), (16, 16)]))
    half(16, 16).save(folder / "0-masklabel.png")
    return folder


def test_where_masks_lie(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for masks in ("off", "beside"):
        first, second = open_pictures(str(folder), masks)  # the mask is no picture in any case
        assert second.mask is None and (first.mask is not None) == (masks == "beside")
    said = capsys.readouterr().err
    assert "1 of 2 pictures have masks" in said and "the other 1 count as a whole" in said
    see_through = half(16, 16).convert("RGBA")  # black where nothing is seen
    see_through.putalpha(half(16, 16))
    see_through.save(folder / "0-masklabel.png")
    assert np.array_equal(read_mask(first.source, folder / "0-masklabel.png"), half(16, 16))
    (tmp_path / "masks" / "10_toy").mkdir(parents=True)
    half(16, 16).save(tmp_path / "masks" / "10_toy" / "1.png")
    assert [p.mask is not None for p in open_pictures(str(tmp_path), str(tmp_path / "masks"))] == [False, True]
    rgba = Image.open(folder / "0.png").convert("RGBA")
    rgba.putalpha(half(16, 16))
    rgba.save(folder / "0.png")
    pictures = open_pictures(str(folder), "alpha")
    weights = [p.weights(fit_to(16, 16, [(16, 16)]), False, (4, 4), 0.0) for p in pictures]
    assert weights[1] is None and torch.equal(
        weights[0], weights_of(half(16, 16), fit_to(16, 16, [(16, 16)]), False, (4, 4), 0)
    )


def test_masks_that_do_not_fit(folder: Path, tmp_path: Path) -> None:
    half(16, 18).save(folder / "0-masklabel.png")
    Image.new("L", (16, 16)).save(folder / "1-masklabel.png")
    words = "2 of 2 masks do not fit .*18 × 16, and 0.png has 16 × 16.*black all over, so that 1.png"
    with pytest.raises(PeftError, match=re.compile(words, re.S)):
        open_pictures(str(folder), "beside")
    with pytest.raises(PeftError, match="must be beside, alpha, off, or a folder"):
        open_pictures(str(folder), "aside")
    with pytest.raises(PeftError, match="no picture of .* has an alpha channel"):
        open_pictures(str(folder), "alpha")
    draw_pictures(tmp_path / "masks" / "others", [(16, 16)] * 3)
    (tmp_path / "masks" / "others" / "2.png").rename(tmp_path / "masks" / "9.png")
    for number in (0, 1):
        (tmp_path / "masks" / "others" / f"{number}.png").unlink()
    with pytest.raises(PeftError, match="no mask in .* has the name of a picture"):
        open_pictures(str(folder), str(tmp_path / "masks"))
    with pytest.raises(PeftError, match="--masks aside must be beside"):  # before a base is looked for
        fit(data=str(folder), base="nowhere", prompt="a toy", masks="aside")
    with pytest.raises(PeftError, match="--masks is for training on captioned pictures"):
        fit(data="world/control/canny", method="controlnet", masks="alpha")


def test_weights_follow_the_crop_and_the_mirror() -> None:
    crop = fit_to(16, 32, [(16, 16)])  # the middle: eight white columns, eight black
    left = torch.tensor([1.0, 1, 0, 0]).expand(1, 4, 4)
    assert torch.equal(weights_of(half(16, 32), crop, False, (4, 4), 0.0), left)
    assert torch.equal(weights_of(half(16, 32), crop, True, (4, 4), 0.1), left.flip(-1).clamp(min=0.1))


def test_a_masked_loss_by_hand() -> None:
    said, target = torch.randn(2, 3, 2, 2, dtype=torch.float64), torch.randn(2, 3, 2, 2, dtype=torch.float64)
    mask, weight = torch.rand(2, 1, 2, 2), torch.tensor([0.5, 2.0])
    total = sum(
        weight[b] * mask[b, 0, h, w] * (said[b, c, h, w].float() - target[b, c, h, w].float()) ** 2 / 12 / 2
        for b in range(2) for c in range(3) for h in range(2) for w in range(2)
    )  # fmt: skip
    assert torch.allclose(denoising_loss(said, target, weight, mask), total)


def test_a_run_learns_what_is_white(sd15: str, folder: Path, balls: str, tmp_path: Path) -> None:
    half(16, 16).save(folder / "1-masklabel.png")
    settings = dict(
        data=str(folder), base=sd15, method={"name": "lora", "rank": 2}, prompt="a toy", class_prompt="a ball", prior=balls,
        prior_count=2, lr=0.01, resolution=16, cache="off", **SHORT | {"sample_count": 0, "steps": 2},
    )  # fmt: skip

    for name, masks in (("half", "beside"), ("plain", "off")):
        fit(out=str(tmp_path / name), masks=masks, **settings)  # type: ignore[arg-type]
    half_white, plain = (load_file(tmp_path / name / "adapter/unet/adapter.safetensors") for name in ("half", "plain"))
    assert any((value != plain[key]).any() for key, value in half_white.items())
    results = json.loads((tmp_path / "half" / "results.json").read_text(encoding="utf-8"))
    assert results["pictures"]["masks"] == 2
