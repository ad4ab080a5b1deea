"""Files of a run that need nothing of this package."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from clip_peft.as_transformers import why_no_clip_model
from clip_peft.export import export, merge_
from clip_peft.fit import fit
from peft_core import PeftError, list_methods, load_run
from peft_core.registry import find_method
from tests.clip_peft.conftest import SHORT
from tests.clip_peft.models import coca, custom_clip, siglip


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


def test_a_merged_model_is_plain_transformers(trained, tmp_path: Path) -> None:
    import transformers

    path = trained("clip_lora")
    export(run=path, out=str(tmp_path), what=["transformers"])
    model: Any = transformers.CLIPModel.from_pretrained(tmp_path).eval()
    run = load_run(path)
    words = ["a red ring", "Great white SHARK", "king-of-the-castle (toy)"]
    whole, length = run.model.model, run.model.learner.clip.tower.context_length
    ids = run.model.learner.clip.tokenizer(words, context_length=length)
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path)(
        words, padding="max_length", max_length=length
    ).input_ids
    for own, other in zip(ids.tolist(), theirs, strict=True):
        end = own.index(max(own)) + 1
        assert own[:end] == other[:end] and set(other[end:]) <= {max(own)}
    x = run.encoder.images(images(run))
    with torch.no_grad():
        found = model(pixel_values=x, input_ids=torch.tensor(theirs))
        pairs = (found.image_embeds, whole.encode_image(x)), (found.text_embeds, whole.encode_text(ids))
        for their, our in pairs:
            torch.testing.assert_close(their, F.normalize(our, dim=-1), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model.logit_scale, whole.logit_scale)
    pixels = images(run)[0].permute(1, 2, 0).numpy()
    processor = transformers.CLIPImageProcessor.from_pretrained(tmp_path)
    seen = processor(pixels, return_tensors="pt").pixel_values
    torch.testing.assert_close(seen, x[:1].cpu(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("model", "reason"), [(custom_clip, None), (siglip, "is no ViT of open_clip's"), (coca, "pools its tokens")]
)
def test_which_models_transformers_has(model, reason: str | None) -> None:
    found = why_no_clip_model(model())
    assert found is None if reason is None else reason in str(found)


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


FIRST = {name: next(iter(find_method(name).examples())) for name in list_methods(grafts=False)}
NAMED = [name for name, one in FIRST.items() if one.task == "classify" and not one.of_pictures and name != "maple"]


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
