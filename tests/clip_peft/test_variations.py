"""Variations of pictures by stock pipelines: the shipped one from image to image, and one that is made for them."""

import zlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_peft import OpenVocabulary
from clip_peft.methods.diff_tpt import alike_and_sure
from peft_core import PeftError
from peft_core.jobs.hub.variations import MEAN, STD, Variations, check_base
from tests.clip_peft.models import NAMES, clip, tokenizer


def images(count: int, side: int = 40) -> Tensor:
    chance = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (count, 3, side, side), generator=chance, dtype=torch.uint8)


def test_a_picture_has_its_own_variations_wherever_it_stands() -> None:
    make, x = Variations("reference", steps=2, guidance=3.0, strength=0.5), images(2)
    found = make(x, 0)
    assert found.shape == x.shape and found.dtype == torch.uint8
    assert (make(x[1:2], 0).int() - found[1:2].int()).abs().max() <= 1  # alone or among others
    assert not torch.equal(make(x[:1], 1), found[:1]) and not torch.equal(found[0], x[0])


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random pipeline for image variations, as a folder."""
    import diffusers
    import transformers

    torch.manual_seed(0)
    blocks = {"block_out_channels": (32, 64), "norm_num_groups": 8}
    unet = diffusers.UNet2DConditionModel(
        sample_size=8, layers_per_block=1, cross_attention_dim=32, attention_head_dim=8, **blocks,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        **blocks,
    )
    size = {
        "hidden_size": 32,
        "projection_dim": 32,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    encoder = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(image_size=32, patch_size=8, **size)
    )
    made = diffusers.StableDiffusionImageVariationPipeline(
        vae=vae, image_encoder=encoder, unet=unet, scheduler=diffusers.DDIMScheduler(), safety_checker=None,
        feature_extractor=transformers.CLIPImageProcessor(), requires_safety_checker=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("pipelines") / "tiny"
    made.save_pretrained(folder)
    return folder


def test_a_pipeline_for_variations_is_shown_the_picture(pipeline: Path) -> None:
    import diffusers

    x = images(2, 32)
    found = Variations(str(pipeline), steps=2, guidance=3.0, strength=0.5)(x, 4)
    stock = diffusers.StableDiffusionImageVariationPipeline.from_pretrained(pipeline)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (MEAN, STD))
    chances = [torch.Generator().manual_seed(zlib.crc32(one.numpy().tobytes()) * 10_007 + 4) for one in x]
    made = stock(
        image=(x / 255 - mean) / std, guidance_scale=3.0, num_inference_steps=2, generator=chances, output_type="pt"
    ).images
    own = F.interpolate(made, size=(32, 32), mode="bicubic", antialias=True) if made.shape[-1] != 32 else made
    assert ((own.clamp(0, 1) * 255).round().to(torch.uint8).int() - found.int()).abs().max() <= 1


def test_what_looks_like_the_picture_is_kept_first() -> None:
    picture = torch.tensor([4.0, 0.0, 0.0])
    logits = torch.stack((picture, 0.5 * picture, torch.tensor([0.0, 9.0, 0.0]), torch.tensor([3.0, 1.0, 0.0])))[None]
    assert alike_and_sure(logits, 0.67, 0.4).tolist() == [[0]]  # the surest, the third one, is another picture's
    assert sorted(alike_and_sure(logits, 0.67, 1.0)[0].tolist()) == [0, 1, 3]
    assert alike_and_sure(logits, 1.0, 0.4).tolist() == [[2]]


def test_bases_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        PeftError, match='there is no diffusion base "./nowhere": give --method.base a folder with model_index'
    ):
        OpenVocabulary(clip(), "diff_tpt", NAMES, tokenizer(), base="./nowhere")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(PeftError, match="cannot be reached .*or give --method.base a folder"):
        check_base("nobody/nothing", "--method.base")
    (tmp_path / "model_index.json").write_text('{"_class_name": "Nothing"}', encoding="utf-8")
    with pytest.raises(PeftError, match="diffusers cannot make variations of pictures with"):
        Variations(str(tmp_path), 1, 1.0, 0.5)(images(1), 0)
