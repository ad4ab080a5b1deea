"""Runs and pictures that several tests look at."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits

SHORT = {"batch_size": 100, "trainer": {"max_epochs": 1, "accelerator": "cpu"}}
SMALL = {"recipe": "digits", "batch_size": 20, "trainer": {"max_epochs": 2, "accelerator": "cpu"}}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Six blocks of width 64, with weights drawn from a seed."""
    path = tmp_path_factory.mktemp("backbone") / "test_vit.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), path)
    return f"test_vit@{path}"


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: LoRA on digits, one epoch."""
    from vision_peft.fit import fit

    out = tmp_path_factory.mktemp("runs") / "digits"
    fit(data="digits", out=str(out), **SHORT)
    return out


@pytest.fixture(scope="session")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder train/val/test with 48 + 12 + 24 digits of three classes."""
    folder = tmp_path_factory.mktemp("small") / "digits3"
    digits = load_digits()
    for label, name in enumerate(("zero", "one", "two")):
        rows = np.flatnonzero(digits.target == label)[:28]
        for number, row in enumerate(rows):
            split = "train" if number < 16 else "val" if number < 20 else "test"
            path = folder / split / name / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((digits.images[row] * 255 / 16).astype(np.uint8)).resize((40, 40)).save(path)
    return str(folder)


@pytest.fixture(scope="session")
def small_run(small_data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of `SMALL` on that folder."""
    from vision_peft.fit import fit

    out = tmp_path_factory.mktemp("runs") / "small"
    fit(data=small_data, out=str(out), **SMALL)
    return out


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three digits, two of them in a folder inside it."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    digits = load_digits()
    for row, name in enumerate(("zero.png", "more/one.png", "more/two.png")):
        grey = Image.fromarray((digits.images[row] * 255 / 16).astype(np.uint8))
        grey.resize((64, 64)).save(folder / name)
    return folder
