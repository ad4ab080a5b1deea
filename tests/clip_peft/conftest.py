"""A tiny CLIP model in a folder, pictures of six classes, and runs that several tests look at."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.clip_peft.models import TEXT, VISION, clip
from tests.conftest import once

COLOURS = {
    "red": (200, 30, 30), "green": (30, 180, 40), "blue": (40, 50, 200), "grey": (128, 128, 128), "white": (240, 240, 240),
    "black": (12, 12, 12),
}  # fmt: skip
SHORT = {"shots": 4, "epochs": 3, "batch_size": 8, "cache_views": 2, "trainer": {"accelerator": "cpu"}}


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory):
    import matplotlib

    patch = pytest.MonkeyPatch()
    patch.setenv("MPLCONFIGDIR", matplotlib.get_cachedir())  # its list of fonts takes seconds to make
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(autouse=True, scope="session")
def reliability_once():
    from clip_peft.training import results

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "reliability_diagram", once(results.reliability_diagram))
        yield


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model folder as open_clip saves them."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    folder.mkdir()
    config = {"model_cfg": {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": TEXT}, "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    save_file(clip().state_dict(), folder / "open_clip_model.safetensors")
    return str(folder)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder train/val/test with 6 + 3 + 4 noisy pictures of each of six colours."""
    folder = tmp_path_factory.mktemp("photos") / "colours"
    chance = torch.Generator().manual_seed(0)
    for name, colour in COLOURS.items():
        for split, count in (("train", 6), ("val", 3), ("test", 4)):
            for number in range(count):
                noise = torch.randint(-12, 13, (36, 44, 3), generator=chance)
                pixels = (torch.tensor(colour) + noise).clamp(0, 255).byte().numpy()
                path = folder / split / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(path)
    return str(folder)


@pytest.fixture(scope="session")
def coop_run(backbone: str, photos: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run: CoOp on the base classes."""
    from clip_peft.fit import fit

    out = tmp_path_factory.mktemp("runs") / "coop"
    fit(data=photos, backbone=backbone, method={"name": "coop", "context": 4}, classes="base", out=str(out), **SHORT)
    return out
