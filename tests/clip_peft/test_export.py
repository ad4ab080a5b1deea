"""Files of a run that need nothing of this package."""

import dataclasses
import json
from pathlib import Path

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from clip_peft.export import export, merge_
from clip_peft.fit import fit
from peft_core import PeftError, list_methods, load_run
from peft_core.registry import find_method
from tests.clip_peft.conftest import SHORT


@pytest.fixture(scope="module")
def trained(backbone: str, photos: str, tmp_path_factory: pytest.TempPathFactory):
    """A function: method -> its run."""

    def make(method: str, **settings) -> str:
        out = tmp_path_factory.mktemp(method) / "run"
        short = SHORT | {"epochs": 1, "steps_per_shot": 0}
        fit(data=photos, backbone=backbone, method={"name": method, **settings}, out=str(out), **short)
        return str(out)

    return make


def images(run) -> torch.Tensor:
    return torch.randint(0, 256, (3, 3, *run.fit.size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def probabilities(run) -> torch.Tensor:
    return torch.stack([each.probabilities for each in run.predict(images(run))])


def test_class_weights_serve_any_names(coop_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    names = ["a red ring", "a striped cube"]
    export(run=str(coop_run), out=str(tmp_path), what=["weights"], classes=names)
    assert "weights (2, 16) for normalised image features of the stock model" in capsys.readouterr().out
    stored, about = load_file(tmp_path / "weights.safetensors"), json.loads((tmp_path / "classes.json").read_text())
    assert about["class_names"] == names
    run = load_run(coop_run).with_classes(names)
    with torch.no_grad():
        features = F.normalize(run.model.encode(run.encoder.images(images(run))), dim=-1)
    ours = (stored["logit_scale"] * features @ stored["weights"].t()).softmax(-1)
    torch.testing.assert_close(ours, probabilities(run), atol=1e-5, rtol=1e-4)


def test_a_merged_model_is_plain_open_clip(trained, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = trained("clip_lora")
    merge_(run=path, out=str(tmp_path / "merged"))
    assert "plain open_clip loads them" in capsys.readouterr().out
    run = load_run(path)
    plain = open_clip.create_model(f"local-dir:{tmp_path}/merged")
    x = run.encoder.images(images(run))
    with torch.no_grad():
        torch.testing.assert_close(plain.encode_image(x), run.model.model.encode_image(x), atol=1e-5, rtol=1e-4)
    export(run=path, out=str(tmp_path / "merged"), what=["weights"])
    assert json.loads((tmp_path / "merged/classes.json").read_text())["image_features"] == "the merged model (merge)"


def test_a_projection_merges_into_plain_open_clip(trained, tmp_path: Path) -> None:
    path = trained("prolip")
    merge_(run=path, out=str(tmp_path / "merged"))
    run, plain = load_run(path), open_clip.create_model(f"local-dir:{tmp_path}/merged")
    learner, x = run.model.learner, run.encoder.images(images(run))
    with torch.no_grad():
        expected = learner.clip.projection(learner.encode(x), learner.weight)
        torch.testing.assert_close(plain.encode_image(x), expected, atol=1e-5, rtol=1e-4)


def own_settings(method: str) -> dict:
    """The settings of a method's first example that are not the defaults."""
    first = next(iter(find_method(method).examples()))
    return {key: value for key, value in dataclasses.asdict(first).items() if value != getattr(type(first)(), key)}


NAMED = [name for name in list_methods(grafts=False) if not find_method(name).of_pictures and name != "maple"]


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("maple", {"depth": 2}),
        *(pytest.param(name, own_settings(name), marks=pytest.mark.slow) for name in NAMED),
        pytest.param("mma", {"width": 4, "first": 1, "last": 2}, marks=pytest.mark.slow),
        pytest.param("vpt", {"tokens": 2, "tower": "image"}, marks=pytest.mark.slow),
    ],
)
def test_onnx_gives_the_run_s_probabilities(trained, method: str, settings: dict, tmp_path: Path) -> None:
    import onnxruntime

    path = trained(method, **settings)
    export(run=path, out=str(tmp_path), what=["onnx"])
    run = load_run(path)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (found,) = session.run(None, {"image": (images(run).float() / 255).numpy()})
    torch.testing.assert_close(torch.from_numpy(found), probabilities(run), atol=2e-5, rtol=1e-3)
    (first,) = session.run(None, {"image": (images(run)[:1].float() / 255).numpy()})
    torch.testing.assert_close(torch.from_numpy(first), torch.from_numpy(found[:1]), atol=2e-5, rtol=1e-3)
    assert json.loads(session.get_modelmeta().custom_metadata_map["class_names"]) == list(run.class_names)


def test_what_a_method_does_not_have(coop_run: Path, trained, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(PeftError, match="coop learns beside the model, whose weights stay the stock ones"):
        merge_(run=str(coop_run), out=str(tmp_path))
    cocoop, adapter = trained("cocoop"), trained("taskres")
    with pytest.raises(PeftError, match="cocoop learns beside the model, .*: use `predict`"):
        merge_(run=cocoop, out=str(tmp_path))
    of_pictures = "cocoop has no class weights, because it compares each picture with texts of its own: use `predict`"
    with pytest.raises(PeftError, match=of_pictures):
        export(run=cocoop, out=str(tmp_path), what=["onnx"])
    with pytest.raises(PeftError, match=of_pictures):
        export(run=cocoop, out=str(tmp_path))  # nothing can be written of it
    assert not list(tmp_path.iterdir())
    with pytest.raises(PeftError, match="taskres exports the classes it was trained on: leave --classes out"):
        export(run=adapter, out=str(tmp_path), classes=["black", "red"])
    (tmp_path / "file").touch()
    with pytest.raises(PeftError, match="is a file: give --out a folder"):
        export(run=str(coop_run), out=str(tmp_path / "file"))
