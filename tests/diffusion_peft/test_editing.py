"""Edits: pairs of source and target, InstructPix2Pix on UNets and Kontext on Flux, from data to stock pipelines."""

import json
import signal
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffusion_peft.base.bases import Base, load_base
from diffusion_peft.base.loading import quiet_loading
from diffusion_peft.commands.evaluate import evaluate
from diffusion_peft.commands.export import export
from diffusion_peft.commands.fit import fit
from diffusion_peft.commands.main import main
from diffusion_peft.commands.merge import merge_
from diffusion_peft.commands.sample import sample
from diffusion_peft.drawing.draw import Drawing
from diffusion_peft.editing.use import edited
from diffusion_peft.use.run import Run, combine
from peft_core.errors import PeftError
from tests import killed
from tests.diffusion_peft.conftest import draw_pictures
from tests.diffusion_peft.test_fit import run as run_in_a_process
from tests.diffusion_peft.transformers import pipeline

killed.preload(__name__, "diffusion_peft.training.job", "diffusers", "transformers.models.clip.modeling_clip")
SHORT: dict[str, Any] = {
    "steps": 3, "batch_size": 2, "sample_count": 1, "sample_steps": 1, "lr": 0.05,
    "trainer": {"accelerator": "cpu", "accumulate_grad_batches": 1},
}  # fmt: skip
LORA = {"name": "lora", "rank": 2}


def make_pairs(folder: Path, count: int = 3) -> Path:
    for seed, name in enumerate(("source", "target")):
        draw_pictures(folder / name, [(8, 8)] * count, seed)
    (folder / "instructions").mkdir()
    for number in range(count):
        (folder / "instructions" / f"{number}.txt").write_text(f"make it {number}", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bases") / "flux"
    with quiet_loading():
        pipeline("flux").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def pix2pix(sd15: str, pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("edits") / "sd15"
    fit(data=str(pairs), base=sd15, method=LORA, out=str(out), val="0.4", **SHORT)
    return out


@pytest.fixture(scope="module")
def merged(pix2pix: Path) -> str:
    merge_(run=str(pix2pix), out=str(pix2pix.parent / "merged"))
    return str(pix2pix.parent / "merged")


def drawn(pipe: Any, source: Path, side: int, **more: Any) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    call = dict(prompt="make it red", image=Image.open(source), num_inference_steps=2, height=side, width=side) | more
    if type(pipe).__name__ == "StableDiffusionInstructPix2PixPipeline":
        del call["height"], call["width"]
    with quiet_loading():
        return np.asarray(pipe(**call, generator=torch.Generator().manual_seed(1)).images[0]).astype(int)


def ours(run: Run, source: Path, side: int, **how: Any) -> np.ndarray:
    sized = Drawing(2, height=side, width=side, **how)
    return np.asarray(edited(run, [str(source)], ["make it red"], 1, 1, "", sized)[0][0]).astype(int)


def test_a_unet_that_learns_edits(pix2pix: Path, merged: str, pairs: Path, tmp_path: Path) -> None:
    config = (pix2pix / "config.yaml").read_text(encoding="utf-8")
    assert "recipe: edit" in config
    results = json.loads((pix2pix / "results.json").read_text(encoding="utf-8"))
    assert results["pictures"]["train"] == 2 and results["validation"]["pictures"] == 1 and results["kind"] == "sd1"
    weights = load_file(pix2pix / "adapter" / "unet" / "adapter.safetensors")
    (columns,) = [value for key, value in weights.items() if key.endswith("columns")]
    assert columns.shape == (16, 4, 3, 3) and columns.abs().max() > 0
    with Image.open(pix2pix / "samples" / "final.png") as sheet:
        assert sheet.size == (3 * 8 + 4, 8)  # source, sample, target; one held out
    mine = ours(combine([(str(pix2pix), 1.0)]), pairs / "source" / "0.png", 8, guidance=5.0, source_guidance=2.0)
    with quiet_loading():
        stock = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(merged)
    assert stock.unet.config.in_channels == 8
    picture = drawn(stock, pairs / "source" / "0.png", 8, guidance_scale=5.0, image_guidance_scale=2.0)
    assert np.abs(mine - picture).max() <= 1
    assert np.abs(mine - drawn(stock, pairs / "source" / "1.png", 8, guidance_scale=5.0)).max() > 1  # it is looked at
    with pytest.raises(PeftError, match="source_channels besides, which a LoRA file cannot hold: .* writes the whole"):
        export(run=str(pix2pix), format="diffusers", out=str(tmp_path / "lora"))
    with pytest.raises(PeftError, match="source_channels besides, which a LoRA file cannot hold: give --out"):
        merge_(run=str(pix2pix), into=str(tmp_path / "lora"))
    assert not (tmp_path / "lora").exists()
    with pytest.raises(PeftError, match="no protocol suits"):
        evaluate(run=[str(pix2pix)])


def test_an_editing_base_trains_on(merged: str, pairs: Path, tmp_path: Path) -> None:
    """Its LoRA opens in the stock pipeline; the base draws by itself, from words and sources of any shape."""
    out = tmp_path / "run"
    fit(data=str(pairs), base=merged, method=LORA, out=str(out), edit={"drop": 0.1}, **SHORT | {"sample_count": 0})
    with quiet_loading():
        stock = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(merged)
        stock.load_lora_weights(str(export(run=str(out), format="diffusers", out=str(tmp_path / "lora")).parent))
    mine = ours(combine([(str(out), 1.0)]), pairs / "source" / "0.png", 8, guidance=5.0)
    assert np.abs(mine - drawn(stock, pairs / "source" / "0.png", 8, guidance_scale=5.0)).max() <= 1
    wide = draw_pictures(tmp_path / "wide", [(8, 16)])
    line = f"sample --base {merged} --source {wide}/0.png --prompt it --count 1 --steps 1 --out {tmp_path}/drawn"
    assert main(line.split()) == 0
    with Image.open(tmp_path / "drawn" / "00-0.png") as picture:
        assert picture.width > picture.height
    with pytest.raises(PeftError, match="draws from a source picture: give one with `sample --source`"):
        Run(load_base(merged)).sample("a toy")
    with pytest.raises(PeftError, match="draws from a source picture, so it trains on pairs"):
        fit(data=str(pairs / "target"), base=merged, method=LORA, prompt="a toy", out=str(tmp_path / "no"), **SHORT)


def test_sdxl_is_drawn_as_its_editing_pipeline_draws(sdxl: str, pairs: Path) -> None:
    def livened(base: Base) -> Base:
        base.take_sources()
        with torch.no_grad():
            base.part("unet").conv_in.weight.normal_(generator=torch.Generator().manual_seed(0)).mul_(0.1)
        return base

    mine = ours(Run(livened(load_base(sdxl))), pairs / "source" / "0.png", 8, guidance=5.0)
    stock = livened(load_base(sdxl)).pipeline()
    assert type(stock).__name__ == "StableDiffusionXLInstructPix2PixPipeline"
    assert np.abs(mine - drawn(stock, pairs / "source" / "0.png", 8, guidance_scale=5.0)).max() <= 1
    assert ours(Run(livened(load_base(sdxl, "bfloat16"))), pairs / "source" / "0.png", 8).shape == mine.shape


def test_a_widened_unet_does_what_it_did(sd15: str) -> None:
    base, plain = load_base(sd15), load_base(sd15)
    base.take_sources()
    x, source = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    given: dict[str, Any] = dict(time=torch.tensor([3, 500]), guidance=None, hidden=torch.ones(2, 7, 24))
    with torch.no_grad():
        wide = base.family.predict(base.part("unet"), x, source=source, **given)
        torch.testing.assert_close(wide, plain.family.predict(plain.part("unet"), x, **given))


def test_a_flux_that_learns_edits(flux: str, pairs: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    settings = SHORT | {"resolution": 16}
    results = fit(data=str(pairs), base=flux, method=LORA, flow={"guidance": 1.0}, out=str(out), **settings)
    assert results["kind"] == "flux" and results["loss"] > 0
    with quiet_loading():
        stock = diffusers.FluxKontextPipeline(**pipeline("flux").components)
        stock.load_lora_weights(str(export(run=str(out), format="diffusers", out=str(tmp_path / "lora")).parent))
        merge_(run=str(out), out=str(tmp_path / "merged"))
        merged = diffusers.FluxKontextPipeline.from_pretrained(tmp_path / "merged")
    mine = ours(combine([(str(out), 1.0)]), pairs / "source" / "0.png", 8)
    for other in (stock, merged):
        picture = drawn(other, pairs / "source" / "0.png", 8, max_area=64, _auto_resize=False)
        assert np.abs(mine - picture).max() <= 1
    words = combine([(str(out), 1.0)]).sample("make it red", 1, seed=1, how=Drawing(2, height=8, width=8))
    assert np.abs(np.asarray(words[0][0]).astype(int) - mine).max() > 1  # without a source it draws from words alone


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bytes(sd15: str, pairs: Path, tmp_path: Path) -> None:
    settings = dict(
        data=str(pairs), base=sd15, method=LORA, edit={"drop": 0.3}, cache="off", save_every=0.0, ema=0.9,
        **SHORT | {"steps": 8, "sample_count": 0},
    )  # fmt: skip
    assert run_in_a_process(tmp_path / "whole", **settings) == 0
    assert run_in_a_process(tmp_path / "killed", 2, **settings) == -signal.SIGKILL
    assert run_in_a_process(tmp_path / "killed", **settings) == 0
    for name in ("adapter/unet/adapter.safetensors", "metrics.csv"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes(), name


def test_what_is_refused(sd15: str, flux: str, pairs: Path, tmp_path: Path) -> None:
    """Each in one sentence, before anything is written."""
    with quiet_loading():
        pipeline("sana").save_pretrained(tmp_path / "sana")
    settings: dict[str, Any] = dict(data=str(pairs), out=str(tmp_path / "run"), **SHORT)
    for given, words in (
        ({"base": str(tmp_path / "sana")}, "is Sana, which takes no source picture: pairs .* are for Flux.1, Stable"),
        ({"base": flux, "edit": {"drop": 0.1}, "flow": {"guidance": 1.0}}, "--edit.drop is for guidance by the source"),
        ({"base": sd15, "prior": str(pairs)}, "there is no use for --prior"),
        ({"base": sd15, "masks": "alpha"}, "there is no use for --masks"),
        ({"base": sd15, "data": None, "edit": {"drop": 0.1}}, "--edit needs --data"),
        ({"base": sd15, "method": "controlnet", "edit": {"drop": 0.1}, "control": {"condition": "canny"}},
         "--edit.drop has no effect on this run"),
    ):  # fmt: skip
        with pytest.raises(PeftError, match=words):
            fit(**{"method": LORA} | settings | given)
    assert not (tmp_path / "run").exists()
    asked: dict[str, Any] = dict(prompt=["it"], base=flux, out=str(tmp_path / "run"), steps=1)
    one = [str(pairs / "source" / "0.png")]
    for given, words in (
        ({"source": one, "condition": one}, "drawn from a --source or under a --condition: leave one of them out"),
        ({"source_guidance": 2.0}, "--source_guidance weighs a --source, and there is none"),
        ({"source": one, "source_guidance": 2.0}, "--source_guidance is for UNets, and .* is Flux.1"),
        ({"switch_every": 2}, "--switch_every is how long each adapter's turn is with --how switch"),
    ):
        with pytest.raises(PeftError, match=words):
            sample(**asked | given)
    assert not (tmp_path / "run").exists()
    plain = Run(load_base(sd15))
    with pytest.raises(PeftError, match="takes no source picture: leave --source out"):
        edited(plain, [str(pairs / "source" / "0.png")], ["it"], 1, 0, "", Drawing(1))
    plain.base.take_sources()
    with pytest.raises(PeftError, match="there is no source .*nowhere.png"):
        edited(plain, [str(tmp_path / "nowhere.png")], ["it"], 1, 0, "", Drawing(1))
