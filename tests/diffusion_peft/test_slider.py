"""Concept sliders: the loss by hand, the sign of the scale, both kinds of data."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler
from peft_data.batches import generator_of
from safetensors.torch import load_file

import peft_core
from diffusion_peft.commands.fit import fit
from diffusion_peft.commands.main import main
from diffusion_peft.drawing.draw import Drawing
from diffusion_peft.personalize.slider import Slider, ddim_step
from diffusion_peft.training.noise import Discrete, alphas_of
from tests.diffusion_peft.conftest import SHORT, draw_pictures
from tests.diffusion_peft.test_losses import ALPHAS, OF_SD, Doubles, by_hand, group


class ScaledDoubles(Doubles):
    scale = 1.0

    def forward(self, x, time, hidden, added_cond_kwargs=None):
        return SimpleNamespace(sample=self.scale * self.factor * x + hidden.mean((1, 2)).view(-1, 1, 1, 1))


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Slider:
    def scale(self, value: float) -> None:
        self.unet.scale = value

    monkeypatch.setattr(Slider, "scale", scale)
    return Slider(ScaledDoubles(), {}, Discrete(ALPHAS), 10, **OF_SD, strength=4.0, guidance=3.0, drawing_steps=3)


def test_ddim_steps_are_those_of_diffusers() -> None:
    for kind in ("epsilon", "v_prediction"):
        scheduler = DDIMScheduler(clip_sample=False, prediction_type=kind)
        scheduler.set_timesteps(50)
        alphas = alphas_of(dict(scheduler.config))
        x, said = torch.randn(2, 4, 2, 2), torch.randn(2, 4, 2, 2)
        now, after = scheduler.timesteps[3], scheduler.timesteps[4]
        expected = scheduler.step(said, now, x).prev_sample
        torch.testing.assert_close(ddim_step(x, said, alphas[now], alphas[after], kind), expected)


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_text_loss(module: Slider, seed: int) -> None:
    texts = {name: {"hidden": torch.full((2, 3, 5), value)} for name, value in
             {"target": 0.1, "positive": 0.7, "negative": -0.2, "empty": 0.0}.items()}  # fmt: skip
    loss = module.loss(texts | {"shape": torch.zeros(2, 4, 2, 2), "sizes": torch.zeros(2, 6)}, generator_of(seed))
    chance = generator_of(seed)
    drawn_at = (1.0, -1.0)[int(torch.randint(2, (), generator=chance))]
    x = torch.randn(2, 4, 2, 2, generator=chance)
    for step in range(int(torch.randint(1, 3, (), generator=chance))):
        said = drawn_at * 2 * x + 0.0 + 3 * 0.1
        x = ddim_step(x, said, ALPHAS[2 - step], ALPHAS[1 - step], "epsilon")
    both = [(sign * 2 * x + 0.1 - (0.1 + sign * 4.0 * 0.9)).square().mean() for sign in (1.0, -1.0)]
    torch.testing.assert_close(loss, (both[0] + both[1]) / 2)
    assert loss.requires_grad


@pytest.mark.parametrize("seed", [1, 2])
def test_picture_loss(module: Slider, seed: int) -> None:
    """The high picture at scale 1 and the low one at −1, from the same noise and time."""
    loss = module.loss({"high": group(2, 0), "low": group(2, 7)}, generator_of(seed))
    high = by_hand(group(2, 0), generator_of(seed), "epsilon")
    with torch.no_grad():
        module.unet.factor.neg_()
    module.scale(1.0)
    low = super(Slider, module).loss(group(2, 7), generator_of(seed))
    torch.testing.assert_close(loss, (high + low) / 2)


def test_checkpointed_passes_are_at_their_own_scales(sd15: str, tmp_path: Path) -> None:
    settings = SHORT | {"steps": 2, "sample_count": 0}
    slider = {"target": "a toy", "positive": "big", "negative": "wee", "steps": 3}
    for name, less in (("plain", False), ("less", True)):
        fit(base=sd15, slider=slider, out=str(tmp_path / name), lr=0.02, gradient_checkpointing=less, **settings)
    one, other = (load_file(tmp_path / name / "adapter/unet/adapter.safetensors") for name in ("plain", "less"))
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, rtol=1e-4, atol=1e-6)


def test_text_slider(sd15: str, tmp_path: Path) -> None:
    line = (
        f"fit --base {sd15} --out {tmp_path}/run --steps 3 --sample_count 1 --sample_steps 1 --lr 0.02 --slider.steps 4"
    )
    words = [
        "--slider.target",
        "a toy",
        "--slider.positive",
        "big",
        "--slider.negative",
        "wee",
        "--slider.attributes",
        "a",
        "b",
    ]
    assert main([*line.split(), *words]) == 0
    run = peft_core.load_run(tmp_path / "run")
    pictures = []
    for scale in (-2.0, 0.0, 2.0):
        run.set_scale(scale)
        pictures.append(run.sample("a toy", how=Drawing(steps=1))[0][0].tobytes())
    assert len(set(pictures)) == 3
    line = f"sample --run {tmp_path}/run --scale -2 --prompt toy --count 1 --steps 1 --out {tmp_path}/drawn"
    assert main(line.split()) == 0


def test_picture_slider(sdxl: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for number, name in enumerate(("low", "high")):
        draw_pictures(tmp_path / "pairs" / name, [(16, 16)] * 2, seed=number)
    settings = SHORT | {"sample_count": 0}
    fit(data=str(tmp_path / "pairs"), base=sdxl, slider={"target": "a toy"}, out=str(tmp_path / "run"), **settings)
    draw_pictures(tmp_path / "pairs" / "high", [(16, 16)] * 3)
    line = f"fit --base {sdxl} --data {tmp_path}/pairs --slider.target toy --out {tmp_path}/not"
    assert main(line.split()) == 2 and "must hold pictures of the same names" in capsys.readouterr().err
    assert main([*f"fit --base {sdxl} --slider.target toy --out {tmp_path}/not".split()]) == 2
    assert "a slider needs --slider.target, --slider.positive" in capsys.readouterr().err
    line = f"fit --base {sdxl} --method bitfit --data {tmp_path}/pairs --slider.target toy --out {tmp_path}/not"
    (tmp_path / "pairs" / "high" / "2.png").unlink()
    assert main(line.split()) == 2 and "a slider needs a method whose change has a scale" in capsys.readouterr().err
