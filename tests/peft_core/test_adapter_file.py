"""Adapter folders: what is in them, and every way in which one can be wrong."""

import errno
import json
import os
from importlib import metadata

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from peft_core import PeftError, adapt, count_parameters, load_adapter, save_adapter, set_scale
from tests.tiny import MODELS, vit

VIT = MODELS["vit"]


@pytest.fixture
def saved(tmp_path):
    model = adapt(VIT.model().eval(), "lora", rank=2)
    save_adapter(model, tmp_path / "a", class_names=["cat", "dog"])
    return model, tmp_path / "a"


def test_the_card_tells_what_is_needed(saved):
    model, folder = saved
    card = json.loads((folder / "adapter.json").read_text())
    assert card["adaptations"][0]["method"] == "lora" and card["adaptations"][0]["settings"]["rank"] == 2
    assert card["class_names"] == ["cat", "dog"] and card["versions"]["torch"] == metadata.version("torch")
    assert card["backbone"]["class"].endswith("VisionTransformer")
    tensors = load_file(folder / "adapter.safetensors")
    n = count_parameters(model)
    assert sum(t.numel() for t in tensors.values()) == n.inserted + n.head
    assert sorted(p.name for p in folder.iterdir()) == ["adapter.json", "adapter.safetensors"]


def test_two_adaptations_in_one_folder(tmp_path):
    model = adapt(adapt(VIT.model().eval(), "lora", name="one", rank=2), "vpt", name="two", tokens=3)
    save_adapter(model, tmp_path)
    again = load_adapter(VIT.model().eval(), tmp_path)
    assert (
        torch.equal(VIT(again), VIT(model)) and count_parameters(again).by_method == count_parameters(model).by_method
    )


def test_a_base_in_bfloat16_is_the_same_backbone(saved):
    _, folder = saved
    load_adapter(VIT.model().bfloat16(), folder)


def test_another_head_is_no_other_backbone(saved, tmp_path):
    model = vit(num_classes=9)().eval()
    with pytest.raises(PeftError, match=r"head.bias is \(5,\) in the file and \(9,\) here"):
        load_adapter(model, saved[1])
    assert "_peft_record" not in model.__dict__


def damage(folder, name, content):
    (folder / name).write_bytes(content)


WRONG = {
    "is truncated": lambda f: damage(f, "adapter.safetensors", (f / "adapter.safetensors").read_bytes()[:-9]),
    "has no adapter.json": lambda f: (f / "adapter.json").unlink(),
    "has no adapter.safetensors": lambda f: (f / "adapter.safetensors").unlink(),
    "is damaged": lambda f: damage(f, "adapter.json", b'{"adaptations": 3'),
    "newer version": lambda f: damage(f, "adapter.json", b'{"adaptations": [], "format": 99}'),
    "the file lacks": lambda f: save_file({"head.bias": torch.zeros(5)}, f / "adapter.safetensors"),
    "the file has also": lambda f: save_file(
        load_file(f / "adapter.safetensors") | {"x": torch.zeros(1)}, f / "adapter.safetensors"
    ),
}


@pytest.mark.parametrize("sentence", WRONG)
def test_a_damaged_folder_is_refused_and_the_model_stays_stock(saved, sentence):
    WRONG[sentence](saved[1])
    model = VIT.model()
    with pytest.raises(PeftError, match=sentence):
        load_adapter(model, saved[1])
    stock = VIT.model()
    assert [type(m) for m in model.modules()] == [type(m) for m in stock.modules()]
    assert list(model.state_dict()) == list(stock.state_dict()) and all(p.requires_grad for p in model.parameters())


def test_another_backbone_is_refused_unless_forced(saved):
    _, folder = saved
    torch.manual_seed(99)
    other = vit()()
    with pytest.raises(PeftError, match="trained on a backbone with other weights"):
        load_adapter(other, folder)
    assert count_parameters(load_adapter(other, folder, force=True)).inserted > 0
    with pytest.raises(PeftError, match="does not fit this model"):
        load_adapter(vit(embed_dim=96)(), folder, force=True)
    named = timm.create_model("test_vit", num_classes=5)
    with pytest.raises(PeftError):
        load_adapter(named, folder)


def test_pickles_are_refused_and_never_loaded(saved, tmp_path):
    path = tmp_path / "adapter.pt"
    torch.save({"a": 1}, path)
    with pytest.raises(PeftError, match="pickles are never loaded"):
        load_adapter(VIT.model(), path)
    with pytest.raises(PeftError, match="there is no adapter folder"):
        load_adapter(VIT.model(), tmp_path / "nowhere")


def test_a_full_disk_keeps_the_old_adapter(saved, monkeypatch):
    model, folder = saved
    old = {p.name: p.read_bytes() for p in folder.iterdir()}

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PeftError, match="No space left on device.: what stood there is unchanged"):
        save_adapter(model, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == old


def test_what_cannot_be_saved_or_loaded_twice(saved, tmp_path):
    model, folder = saved
    with pytest.raises(PeftError, match="is adapted already"):
        load_adapter(model, folder)
    set_scale(model, 0.5)
    with pytest.raises(PeftError, match="is scaled to 0.5"):
        save_adapter(model, tmp_path / "b")
    with pytest.raises(PeftError, match="has no adaptation"):
        save_adapter(VIT.model(), tmp_path / "b")
