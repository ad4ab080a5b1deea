"""Wan on clips: frames from videos, the loss of a film, and what stock pipelines make of the adapter."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft_data import world_motion
from peft_data.world_motion import write_mp4
from PIL import Image
from torch import Tensor

from diffusion_peft.base.bases import load_base
from diffusion_peft.base.families import of_kind
from diffusion_peft.base.loading import quiet_loading
from diffusion_peft.commands.export import export
from diffusion_peft.commands.fit import fit
from diffusion_peft.commands.main import main
from diffusion_peft.data.buckets import fit_to
from diffusion_peft.data.films import open_films
from diffusion_peft.training import denoise
from diffusion_peft.training.denoise import Denoiser
from diffusion_peft.training.flow import flow_of
from peft_core.errors import PeftError
from tests.diffusion_peft.conftest import SHORT
from tests.diffusion_peft.transformers import edit, pipeline

SIDE = 16


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bases") / "wan"
    with quiet_loading():
        pipeline("wan").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    chance = torch.Generator().manual_seed(0)
    for name, length in (("a", 5), ("b", 3)):
        write_mp4(
            folder / f"{name}.mp4", torch.randint(0, 255, (length, 3, SIDE, SIDE), generator=chance, dtype=torch.uint8)
        )
        (folder / f"{name}.txt").write_text("a toy", encoding="utf-8")
    return folder


def test_a_run_on_clips(wan: str, clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Captioned clips by the recipe of captioned pictures, whose min-SNR weights are not for a flow."""
    out = tmp_path / "run"
    settings: dict[str, Any] = dict(data=str(clips), base=wan, method={"name": "lora", "rank": 2}, frames=3,
                                    resolution=SIDE, lr=0.05, guidance=3.0, out=str(out), **SHORT)  # fmt: skip
    with pytest.raises(PeftError, match="--snr_gamma weighs the noise of a discrete schedule"):
        fit(snr_gamma=4.0, **settings)
    results = fit(**settings)
    assert "note: text_to_image's snr_gamma is for discrete schedules" in "".join(capsys.readouterr())
    assert results["kind"] == "wan" and results["pictures"]["train"] == 2
    line = f"sample --run {out} --prompt toy --count 1 --steps 2 --height {SIDE} --width {SIDE} --out {tmp_path}/drawn"
    assert main(line.split()) == 0
    film = Image.open(tmp_path / "drawn" / "00-0.webp")
    assert film.n_frames == 3 and film.size == (SIDE, SIDE)  # type: ignore[attr-defined]
    with quiet_loading():
        stock = pipeline("wan")
        stock.load_lora_weights(str(export(run=str(out), format="diffusers", out=str(tmp_path / "lora")).parent))
    wanted = stock("toy", num_frames=3, num_inference_steps=2, height=SIDE, width=SIDE, output_type="pil",
                   generator=torch.Generator().manual_seed(0)).frames[0]  # fmt: skip
    for number, frame in enumerate(wanted):
        film.seek(number)
        assert np.abs(np.asarray(film.convert("RGB")).astype(int) - np.asarray(frame).astype(int)).max() <= 1


def test_drawn_clips_are_called_by_their_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PEFT_DATA_CACHE", str(tmp_path))
    monkeypatch.setattr(world_motion, "SPLITS", {"train": 8, "val": 1, "test": 1})
    found = open_films("world/motion/direction", 5)
    assert sorted({str(film.caption) for film in found}) == sorted(world_motion.CLASSES["direction"])
    assert found[0].pixels(fit_to(SIDE, SIDE, [(SIDE, SIDE)]), False).shape == (15, SIDE, SIDE)


def test_the_loss_of_a_film(clips: Path, wan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """‖ε − x₀ − f(x_σ, 1000 σ, text)‖² of latents that are brought to mean 0 and deviation 1, as the pipeline undoes it."""
    made, family = pipeline("wan"), of_kind("wan")
    film, _ = open_films(str(clips), 3)
    pixels = film.pixels(fit_to(SIDE, SIDE, [(SIDE, SIDE)]), False)[None]
    assert pixels.shape == (1, 9, SIDE, SIDE)
    with torch.no_grad():
        mean, logvar = family.encode(made.vae, pixels)
        plain = made.vae.encode(pixels.view(1, 3, 3, SIDE, SIDE)).latent_dist
    config = made.vae.config
    shift, scale = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in (config.latents_mean, config.latents_std))
    x = (plain.mean - shift) / scale
    torch.testing.assert_close(mean, x.flatten(1, 2))
    torch.testing.assert_close((0.5 * logvar).exp(), (plain.std / scale).flatten(1, 2))
    noise, words = torch.randn(x.shape), torch.randn(1, 7, 32)
    sigma = torch.tensor([0.3])
    with torch.no_grad():
        noised = (1 - sigma) * x + sigma * noise
        said = made.transformer(noised, sigma * 1000, words, return_dict=False)[0]
    monkeypatch.setattr(denoise, "offset_noise", lambda *_: noise.flatten(1, 2))
    base = load_base(wan)
    module = Denoiser(
        made.transformer, {}, flow_of(base.config("scheduler"), 2, {}), 10, family=family, normal=family.normal(base)
    )
    batch: dict[str, Tensor] = {"mean": mean, "logvar": torch.full_like(mean, -torch.inf), "hidden": words}
    with torch.no_grad():
        loss = module.loss(batch, torch.Generator(), sigma)
    torch.testing.assert_close(loss, (noise - x - said).square().mean())


def test_what_is_refused(wan: str, clips: Path, sd15: str, toys: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = dict(
        method="lora", prompt="a toy", base=wan, data=str(clips), out=str(tmp_path / "run"), **SHORT
    )
    for given, words in (
        ({"frames": 3, "base": sd15}, "--frames is for bases that draw films, and .* is Stable Diffusion 1.x"),
        ({"frames": 4}, "takes 2 n \\+ 1 frames: try --frames 3"),
        ({"frames": 5}, "1 of 2 clips cannot be read or have fewer than 5 frames"),
        ({"frames": 3, "data": toys}, "there is no video in"),
        ({"frames": 3, "class_prompt": "a ball"}, "--class_prompt draws single pictures"),
        ({}, "there is no picture in"),
        ({"frames": 3, "masks": "alpha"}, "--masks is for pictures, and --frames trains on clips"),
        ({"data": "world/motion/direction"}, "world/motion/direction are clips: give --frames"),
    ):  # fmt: skip
        with pytest.raises(PeftError, match=words):
            fit(**settings | given)
    assert not (tmp_path / "run").exists()
    edit(Path(wan) / "model_index.json", expand_timesteps=True)
    with pytest.raises(PeftError, match="is of Wan 2.2"):
        load_base(wan)
    edit(Path(wan) / "model_index.json", expand_timesteps=False)
