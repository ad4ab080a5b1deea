"""Runs and pictures that several tests look at."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

SHORT = {"batch_size": 100, "trainer": {"max_epochs": 1, "accelerator": "cpu"}}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: LoRA on digits, one epoch."""
    from vision_peft.fit import fit

    out = tmp_path_factory.mktemp("runs") / "digits"
    fit(data="digits", out=str(out), **SHORT)
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
