"""Diffusion transformers as bases: what is known of them, how they are trained, drawn and merged."""

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffusion_peft.base.bases import load_base
from diffusion_peft.base.loading import quiet_loading
from diffusion_peft.commands.export import export
from diffusion_peft.commands.fit import fit
from diffusion_peft.commands.merge import merge_
from diffusion_peft.commands.sample import sample
from diffusion_peft.drawing.draw import Drawing
from diffusion_peft.personalize.slider_data import ROLES
from diffusion_peft.use.run import Run, combine
from peft_core.errors import PeftError
from tests import killed
from tests.diffusion_peft.conftest import SHORT
from tests.diffusion_peft.test_fit import run as run_in_a_process
from tests.diffusion_peft.transformers import MAKERS, edit, flux, pipeline

killed.preload(__name__, "diffusion_peft.training.job", "diffusers", "transformers.models.clip.modeling_clip")


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Made when first asked for."""
    root = tmp_path_factory.mktemp("transformers")

    class Folders(dict):
        def __missing__(self, kind: str) -> str:
            with quiet_loading():
                pipeline(kind).save_pretrained(root / kind)
            self[kind] = str(root / kind)
            return self[kind]

    return Folders()


def drawn_by(stock: Any, kind: str, side: int, **more: Any) -> np.ndarray:
    call: dict[str, Any] = dict(prompt="a red toy", num_inference_steps=2, height=side, width=side)
    call |= {"sana": {"use_resolution_binning": False}, "qwen_image": {"negative_prompt": "", "true_cfg_scale": 4.0},
             "pixart": {"use_resolution_binning": False, "clean_caption": False},
             "wan": {"num_frames": 1, "output_type": "pil"}}.get(kind, {})  # fmt: skip
    found = stock(**call, **more, generator=torch.Generator().manual_seed(1))
    return np.asarray(found.frames[0][0] if kind == "wan" else found.images[0]).astype(int)


@pytest.mark.parametrize("kind", MAKERS)
def test_pictures_are_those_of_the_stock_pipeline(kind: str, folders: dict[str, str]) -> None:
    base = load_base(folders[kind])
    assert base.kind == kind
    side = base.resolution if base.resolution <= 32 else 32
    ((_, mine),) = Run(base).sample("a red toy", 2, how=Drawing(2, height=side, width=side))
    more = {} if kind == "qwen_image" else {"guidance_scale": base.family.guidance(base)}
    assert np.abs(np.asarray(mine).astype(int) - drawn_by(pipeline(kind), kind, side, **more)).max() <= 1


@pytest.fixture(scope="session")
def sd3_run(folders: dict[str, str], toys: str, balls: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "sd3"
    fit(
        data=toys, base=folders["sd3"], method={"name": "lora", "rank": 2}, prompt="a toy", class_prompt="a ball", prior=balls,
        prior_count=2, lr=0.05, flow={"density": "logit_normal", "weight": "preconditioned"}, out=str(out), **SHORT,
    )  # fmt: skip
    return out


def test_a_run(sd3_run: Path, tmp_path: Path) -> None:
    results = json.loads((sd3_run / "results.json").read_text(encoding="utf-8"))
    assert results["kind"] == "sd3" and results["prediction_type"] == "flow" and results["steps"] == 4
    weights = load_file(sd3_run / "adapter" / "transformer" / "adapter.safetensors")
    assert results["parameters"]["transformer"]["inserted"] == sum(value.numel() for value in weights.values())
    assert any(value.abs().max() > 0 for key, value in weights.items() if key.endswith(".B"))
    assert sample(run=str(sd3_run), prompt=["a toy"], count=1, steps=1, out=str(tmp_path / "drawn"))
    ((adapted,),) = combine([(str(sd3_run), 1.0)]).sample("a red toy", 1, seed=1, how=Drawing(2, 7.0))
    merge_(run=str(sd3_run), out=str(tmp_path / "merged"))
    with quiet_loading():
        from diffusers import StableDiffusion3Pipeline

        merged = StableDiffusion3Pipeline.from_pretrained(tmp_path / "merged")
        stock = pipeline("sd3")
        stock.load_lora_weights(str(export(run=str(sd3_run), format="diffusers", out=str(tmp_path / "export")).parent))
    merged.set_progress_bar_config(disable=True)
    for other in (merged, stock):
        assert np.abs(np.asarray(adapted).astype(int) - drawn_by(other, "sd3", 8, guidance_scale=7.0)).max() <= 1


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes(folders: dict[str, str], toys: str, tmp_path: Path) -> None:
    settings = dict(
        data=toys, base=folders["sd3"], method={"name": "lora", "rank": 2, "dropout": 0.1}, prompt="a toy", lr=0.01,
        flow={"density": "mode", "shift": "resolution"}, ema=0.9, steps=6, sample_count=0, save_every=0.0, cache="off",
        trainer={"accelerator": "cpu"},
    )  # fmt: skip
    assert run_in_a_process(tmp_path / "whole", **settings) == 0
    assert run_in_a_process(tmp_path / "killed", 3, **settings) == -signal.SIGKILL
    assert run_in_a_process(tmp_path / "killed", **settings) == 0
    for name in ("adapter/transformer/adapter.safetensors", "metrics.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


def test_captions_of_several_lengths_without_padding(folders: dict[str, str], toys: str, tmp_path: Path) -> None:
    """Z-Image reads words alone: a batch pads them, and its denoiser is told the ends."""
    folder = Path(shutil.copytree(toys, tmp_path / "toys"))
    for number, text in enumerate(("a toy", "a small red toy", "toys")):
        (folder / f"{number}.txt").write_text(text, encoding="utf-8")
    settings = SHORT | {"steps": 2, "sample_count": 0}
    results = fit(
        data=str(folder), base=folders["z_image"], method={"name": "lora", "rank": 2}, batch_size=2, resolution=16, lr=0.01,
        snr_gamma=0.0, caption_dropout=0.5, out=str(tmp_path / "run"), **settings,
    )  # fmt: skip
    assert results["loss"] > 0


@pytest.mark.parametrize("method, quantize, dtype", [("lora", "int8", "float32"), ("lora", "none", "bfloat16")])
def test_few_bits_and_half_precision(
    method: str, quantize: str, dtype: str, folders: dict[str, str], toys: str, tmp_path: Path
) -> None:
    settings: dict[str, Any] = SHORT | {"steps": 2}
    results = fit(
        data=toys, base=folders["flux"], prompt="a toy", method={"name": method, "rank": 2}, quantize=quantize, dtype=dtype,
        flow={"guidance": 3.5}, resolution=16, lr=0.01, out=str(tmp_path / "run"), **settings,
    )  # fmt: skip
    assert results["loss"] > 0
    weights = load_file(tmp_path / "run" / "adapter" / "transformer" / "adapter.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_what_is_refused(folders: dict[str, str], toys: str, sd15: str, tmp_path: Path) -> None:
    """Each in one sentence, before anything is written."""
    sd3, told = folders["sd3"], folders["flux"]
    settings: dict[str, Any] = dict(data=toys, prompt="a toy", out=str(tmp_path / "run"), **SHORT)
    for given, words in (
        ({"base": told}, "is distilled with guidance, so training must tell it a scale"),
        ({"base": sd3, "flow": {"guidance": 3.5}}, "is told no scale of guidance"),
        ({"base": sd15, "flow": {"density": "mode"}}, "is for bases trained by flow matching"),
        ({"base": sd3, "snr_gamma": 5.0}, "is a flow: leave it at 0"),
        ({"base": sd3, "flow": {"shift": "wide"}}, "must be base, resolution or a number above 0"),
        ({"base": sd3, "text_method": "lora"}, "--text_method is for Stable Diffusion 1.x, 2.x and XL"),
        ({"base": sd3, "clip_skip": 1}, "--clip_skip is for Stable Diffusion"),
        ({"base": sd3, "placeholder": "<toy>", "initializer": "a", "prompt": "a <toy>"}, "--placeholder is for Stable"),
        ({"base": sd3, "data": None, "prompt": None, "slider": dict.fromkeys(ROLES, "a")}, "sliders are for UNets"),
    ):  # fmt: skip
        with pytest.raises(PeftError, match=words):
            fit(**settings | given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "file, changes, words",
    [
        ("transformer/config.json", {"in_channels": 32}, "inpainting or editing model: its transformer takes 32 channels"),
        ("transformer/config.json", {"new_setting": 1}, "its transformer has new_setting = 1, and it is no known setting"),
        ("vae/config.json", {"latents_mean": [0.0] * 16}, "its vae has latents_mean"),
        ("scheduler/scheduler_config.json", {"invert_sigmas": True}, "its scheduler has invert_sigmas = True"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 500}, "num_train_timesteps = 500"),
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "draws no flow that training knows"),
        ("model_index.json", {"text_encoder_3": ["transformers", "UMT5EncoderModel"]}, "its text_encoder_3 is a UMT5"),
    ],
)  # fmt: skip
def test_what_is_not_known_of_a_base(
    file: str, changes: dict[str, Any], words: str, folders: dict[str, str], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders["sd3"], tmp_path / "base"))
    edit(folder / file, **changes)
    with pytest.raises(PeftError, match=words):
        load_base(str(folder))


def test_text_encoders_that_are_missing(folders: dict[str, str], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders["sd3"], tmp_path / "base"))
    shutil.rmtree(folder / "text_encoder_3")
    with pytest.raises(PeftError, match="lacks its part text_encoder_3"):
        load_base(str(folder))
    edit(folder / "model_index.json", text_encoder_3=[None, None], tokenizer_3=[None, None])
    (picture,) = Run(load_base(str(folder))).sample("a red toy", 1, seed=1, how=Drawing(2))[0]
    stock = pipeline("sd3")
    stock.text_encoder_3 = stock.tokenizer_3 = None  # as its authors allow
    assert np.abs(np.asarray(picture).astype(int) - drawn_by(stock, "sd3", 8)).max() <= 1


def test_a_flux_that_is_not_told_its_guidance(toys: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    with quiet_loading():
        flux(distilled=False).save_pretrained(tmp_path / "base")
    settings = SHORT | {"steps": 2, "sample_count": 0}
    assert fit(data=toys, base=str(tmp_path / "base"), prompt="a toy", method={"name": "lora", "rank": 2}, resolution=16,
               out=str(tmp_path / "run"), **settings)["loss"] > 0  # fmt: skip
