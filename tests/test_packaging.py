"""The wheel, installed in an empty folder beside Hugging Face's datasets, works from elsewhere."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from peft_core.config_files import config_root, find_config, list_configs
from peft_core.errors import PeftError
from tests.readme import module_of

ROOT = Path(__file__).parent.parent


def run(*command: str, cwd: Path, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, *command], cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT), cwd=folder)
    (wheel,) = folder.glob("visual_peft-*.whl")
    run("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "site"), str(wheel), cwd=folder)
    return folder / "site"


def test_it_holds_the_packages_the_configs_and_nothing_else(site: Path):
    packages = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} - {"bin"}
    assert packages == {"peft_core", "vision_peft", "clip_peft", "diffusion_peft", "peft_data"}
    assert (site / "peft_core/configs/vision/recipe/digits.yaml").is_file()
    assert (site / "vision_peft/reference/vit.safetensors").stat().st_size < 5 * 2**20
    (wheel,) = site.parent.glob("*.whl")
    assert zipfile.ZipFile(wheel).testzip() is None


def test_hugging_face_datasets_stays_itself(site: Path):
    code = "import datasets, peft_data; print(datasets.Dataset.__module__, peft_data.__file__)"
    out = run("-c", code, cwd=site.parent, PYTHONPATH=str(site))
    assert out.startswith("datasets.") and str(site) in out


def test_a_command_runs_from_elsewhere_and_finds_the_configs_inside_the_package(site: Path):
    out = run("-m", "vision_peft.commands", "list", "recipes", cwd=site.parent, PYTHONPATH=str(site))
    assert "vtab" in out and "digits" in out
    code = "from peft_core.config_files import config_root; print(config_root())"
    assert run("-c", code, cwd=site.parent, PYTHONPATH=str(site)).strip() == str(site / "peft_core/configs")


def test_a_checkout_uses_its_own_configs():
    assert config_root() == ROOT / "configs"


def test_names_win_over_paths_and_mistakes_offer_the_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vtab.yaml").write_text("lr: 1\n")
    assert find_config("recipe", "vtab", "vision") == list_configs("recipe", "vision")["vtab"]
    assert find_config("recipe", "./vtab.yaml", "vision").read_text() == "lr: 1\n"
    with pytest.raises(PeftError, match='unknown recipe "vtb", did you mean "vtab"'):
        find_config("recipe", "vtb", "vision")


def test_listing_waits_for_no_large_library() -> None:
    large = ("timm", "torchvision", "lightning", "diffusers", "transformers", "open_clip", "matplotlib")
    code = "import importlib, sys\n"
    for program in ("vision_peft", "clip_peft", "diffusion_peft"):
        code += f"importlib.import_module({module_of(program)!r}).main(['list', 'methods'])\n"
        code += f"print({program!r}, [name for name in {large} if name in sys.modules])\n"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    lines = said.splitlines()
    assert {"vision_peft []", "clip_peft []", "diffusion_peft []"} <= {*lines} and lines[-1] == "diffusion_peft []"
