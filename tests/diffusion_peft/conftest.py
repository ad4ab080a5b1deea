"""Tiny bases in folders, and pictures to train on."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from diffusion_peft.base.loading import quiet_loading
from tests.conftest import once
from tests.diffusion_peft.pipelines import stable_diffusion

SHORT = {"steps": 4, "sample_count": 1, "sample_steps": 1, "trainer": {"accelerator": "cpu"}}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def curves_once():
    from diffusion_peft.training import results
    from peft_core.jobs.reports import plots

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "plots", SimpleNamespace(curves=once(plots.curves)))
        yield


def base_folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("bases") / name
    with quiet_loading():
        stable_diffusion(name).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> str:
    return base_folder("sd15", tmp_path_factory)


@pytest.fixture(scope="session")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> str:
    return base_folder("sdxl", tmp_path_factory)


def draw_pictures(folder: Path, sizes: list[tuple[int, int]], seed: int = 0) -> str:
    chance = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for number, (height, width) in enumerate(sizes):
        Image.fromarray(chance.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return str(folder)


@pytest.fixture(scope="session")
def toys(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three pictures, one of them twice as wide as high."""
    return draw_pictures(tmp_path_factory.mktemp("toys"), [(16, 16), (16, 32), (20, 18)])


@pytest.fixture(scope="session")
def balls(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two prior pictures."""
    return draw_pictures(tmp_path_factory.mktemp("balls"), [(16, 16), (16, 16)], seed=1)


@pytest.fixture(scope="session")
def lora_run(sd15: str, toys: str, balls: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: LoRA of UNet and text encoder, and a new token of two vectors."""
    from diffusion_peft.commands.fit import fit

    out = tmp_path_factory.mktemp("runs") / "lora"
    fit(
        data=toys, base=sd15, method={"name": "lora", "rank": 2, "alpha": 3.0}, text_method={"name": "lora", "rank": 2},
        prompt="a <toy>", placeholder="<toy>", initializer="a", vectors=2, class_prompt="a ball", prior=balls,
        prior_count=2, lr=0.01, out=str(out), **SHORT,
    )  # fmt: skip
    return out
