"""Where backbones come from, and what they expect of pictures."""

import threading
import time
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from timm.models import save_for_hf
from timm.models.vision_transformer import checkpoint_filter_fn

from peft_core.errors import PeftError
from peft_core.jobs.hub import reach
from vision_peft.backbones import list_backbones, load_backbone
from vision_peft.commands import main


@pytest.fixture(scope="module")
def stock() -> torch.nn.Module:
    torch.manual_seed(1)
    return timm.create_model("test_vit", num_classes=7)


@pytest.fixture
def offline_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub that nothing can reach."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "hub"


def same_but_for_the_head(model: torch.nn.Module, stock: torch.nn.Module) -> bool:
    theirs = stock.state_dict()
    return all(
        torch.equal(value, theirs[key]) for key, value in model.state_dict().items() if not key.startswith("head.")
    )


def test_reference() -> None:
    model, about = load_backbone("reference", 5, drop_path=0.2)
    assert type(model) is timm.models.VisionTransformer and model.num_classes == 5
    assert about.input_size == (40, 40) and about.mean == (0.5, 0.5, 0.5) and about.family == "reference"
    assert model.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)


def test_two_families_have_their_own_normalisation() -> None:
    assert timm.get_pretrained_cfg("vit_base_patch16_224.augreg_in21k").mean == (0.5, 0.5, 0.5)
    assert timm.get_pretrained_cfg("vit_base_patch16_224.orig_in21k").mean != (0.485, 0.456, 0.406)
    found = list_backbones()
    assert found["vit_base_patch16_224.orig_in21k"] == "224×224, mean 0.5,0.5,0.5"


def test_a_search_shows_size_and_parameters(capsys: pytest.CaptureFixture) -> None:
    assert main(["list", "backbones", "--search", "Test_ViT2"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split() == ["test_vit2.r160_in1k", "160×160,", "mean", "0.5,0.5,0.5,", "0.5", "M", "parameters"]
    assert main(["list", "backbones", "--search", "zzz"]) == 2
    assert "try a shorter word" in capsys.readouterr().err
    assert main(["list", "data", "--search", "vit"]) == 2
    assert "use it with `list backbones`" in capsys.readouterr().err


def test_architecture_and_file(stock: torch.nn.Module, tmp_path: Path) -> None:
    save_file(stock.state_dict(), tmp_path / "w.safetensors")
    model, about = load_backbone(f"test_vit.r160_in1k@{tmp_path}/w.safetensors", 7, drop_path=0.1)
    assert same_but_for_the_head(model, stock) and not torch.equal(model.head.weight, stock.head.weight)
    assert about.input_size == (160, 160) and about.family == "w.safetensors" and about.architecture == "test_vit"


def test_file_that_does_not_fit(stock: torch.nn.Module, tmp_path: Path) -> None:
    state = stock.state_dict()
    save_file({key: value for key, value in state.items() if key != "norm.bias"}, tmp_path / "less.safetensors")
    save_file(state, tmp_path / "w.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "w.safetensors").read_bytes()[:5000])
    (tmp_path / "w.pth").touch()
    for spec, sentence in {
        f"test_vit@{tmp_path}/less.safetensors": "it has no norm.bias",
        f"vit_tiny_patch16_224@{tmp_path}/w.safetensors": r"cls_token is \(1, 1, 64\) in the file and \(1, 1, 192\) in",
        f"test_vit@{tmp_path}/cut.safetensors": "truncated or no safetensors file",
        f"test_vit@{tmp_path}/w.pth": "is a pickle, which is never loaded",
        f"test_vit@{tmp_path}/gone.safetensors": "there is no weight file",
        f"test_vti@{tmp_path}/w.safetensors": 'unknown backbone "test_vti", did you mean "test_vit"',
        f"test_vit@{tmp_path}/w.npz": "there is no weight file",
    }.items():
        with pytest.raises(PeftError, match=sentence):
            load_backbone(spec, 3)


def test_a_file_with_more_than_the_architecture_is_refused_by_its_keys(tmp_path: Path) -> None:
    scaled = timm.create_model("test_vit", init_values=0.3)
    save_file(scaled.state_dict(), tmp_path / "scaled.safetensors")
    deeper = timm.create_model("test_vit", depth=8)
    save_file(deeper.state_dict(), tmp_path / "deeper.safetensors")
    for file, sentence in {
        "scaled": r"test_vit, which has no blocks\.0\.ls1\.gamma, .* and 9 more: choose the architecture it is of",
        "deeper": r"which has no blocks\.6\.attn\.proj\.bias",
    }.items():
        with pytest.raises(PeftError, match=sentence):
            load_backbone(f"test_vit@{tmp_path}/{file}.safetensors", 3)


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "module.model."])
def test_a_file_as_trainers_write_it(stock: torch.nn.Module, tmp_path: Path, prefix: str) -> None:
    save_file({prefix + key: value for key, value in stock.state_dict().items()}, tmp_path / "w.safetensors")
    model, _ = load_backbone(f"test_vit@{tmp_path}/w.safetensors", 3)
    assert same_but_for_the_head(model, stock)


def test_a_file_of_another_size_and_deit3s_layer_scale(stock: torch.nn.Module, tmp_path: Path) -> None:
    large = timm.create_model("test_vit", img_size=224)
    save_file(large.state_dict(), tmp_path / "large.safetensors")
    model, about = load_backbone(f"test_vit@{tmp_path}/large.safetensors", 3)
    own = checkpoint_filter_fn(large.state_dict(), stock)  # type: ignore[arg-type]
    assert about.input_size == (160, 160) and torch.equal(model.pos_embed, own["pos_embed"])
    assert torch.equal(model.norm.weight, large.norm.weight)
    third = timm.create_model("deit3_small_patch16_224", depth=2)
    state = {
        key.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for key, v in third.state_dict().items()
    }
    renamed = {key: value for key, value in state.items() if "blocks" not in key or key.split(".")[1] in "01"}
    save_file(renamed, tmp_path / "deit3.safetensors")
    with pytest.raises(
        PeftError, match=r"it has no blocks\.2\."
    ):  # the file's two blocks fit, under their former names
        load_backbone(f"deit3_small_patch16_224@{tmp_path}/deit3.safetensors", 3)


def test_original_npz(tmp_path: Path) -> None:
    import numpy as np

    (tmp_path / "w.npz").write_bytes(b"")
    np.savez(tmp_path / "w.npz", nothing=np.zeros(1))
    with pytest.raises(PeftError, match="holds no weights of vit_tiny_patch16_224"):
        load_backbone(f"vit_tiny_patch16_224@{tmp_path}/w.npz", 3)


def test_model_folder(stock: torch.nn.Module, tmp_path: Path) -> None:
    with pytest.raises(PeftError, match="is no model folder: it needs config.json"):
        load_backbone(str(tmp_path), 3)
    with pytest.raises(PeftError, match="there is no model folder"):
        load_backbone("./nowhere", 3)
    save_for_hf(stock, tmp_path, safe_serialization=True)
    model, about = load_backbone(str(tmp_path), 3)
    assert same_but_for_the_head(model, stock) and model.num_classes == 3
    assert about.input_size == (160, 160) and about.family == tmp_path.name


def test_unknown_names() -> None:
    with pytest.raises(PeftError, match='unknown backbone "vit_bas_patch16_224", did you mean "vit_base_patch16_224"'):
        load_backbone("vit_bas_patch16_224", 3)
    with pytest.raises(PeftError, match='has no weights "augreg_in21", did you mean "augreg_in21k"'):
        load_backbone("vit_base_patch16_224.augreg_in21", 3)
    with pytest.raises(PeftError, match="owner/model"):
        load_backbone("hf-hub:a/b/c", 3)


@pytest.mark.parametrize("name", ["vit_base_patch16_224.orig_in21k", "hf-hub:timm/vit_base_patch16_224.orig_in21k"])
def test_weights_out_of_reach(name: str, offline_hub: Path) -> None:
    began = time.monotonic()
    with pytest.raises(PeftError, match="hf download timm/vit_base_patch16_224.orig_in21k"):
        load_backbone(name, 3)
    assert time.monotonic() - began < 5


def test_hub_that_does_not_answer(offline_hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setenv("VISUAL_PEFT_WAIT", "0.2")
    monkeypatch.setattr(reach.urllib.request, "urlopen", lambda *_, **__: never.wait())
    with pytest.raises(PeftError, match="no answer in 0.2 s"):
        load_backbone("vit_base_patch16_224.orig_in21k", 3)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(PeftError, match="HF_HUB_OFFLINE is set"):
        load_backbone("vit_base_patch16_224.orig_in21k", 3)


@pytest.mark.parametrize("name", ["test_vit.r160_in1k", "hf-hub:timm/test_vit.r160_in1k"])
def test_cached_weights_need_no_network(name: str, offline_hub: Path, stock: torch.nn.Module) -> None:
    repository = offline_hub / "models--timm--test_vit.r160_in1k"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    full = timm.create_model("test_vit")
    full.load_state_dict({key: value for key, value in stock.state_dict().items() if "head" not in key}, strict=False)
    save_for_hf(full, snapshot, safe_serialization=True)
    model, about = load_backbone(name, 3)
    assert same_but_for_the_head(model, stock) and model.num_classes == 3
