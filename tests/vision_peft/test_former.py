"""Adapters of earlier versions do what they did when they were saved."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from peft_core import adapt, load_adapter, save_adapter
from peft_core.errors import PeftError
from peft_core.method import Plan
from tests.tiny import pictures, vit
from vision_peft.classify import Classifier
from vision_peft.methods.noah import NOAH
from vision_peft.methods.st_adapter import STAdapter
from vision_peft.tasks.classify import Classes


def stock(gamma: float | None) -> nn.Module:
    torch.manual_seed(0)
    return vit(init_values=gamma)().eval()


@pytest.mark.parametrize("gamma", [None, 0.05])
def test_serial_adapters_from_before_layer_scale(
    gamma: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:  # where they stood: at the output of attention and MLP, before layer scale
        patch.setattr(Plan, "add_behind", lambda self, sublayer, change: self.add_to_output(sublayer.body, change))
        model = adapt(stock(gamma), "adapter", bottleneck=4, position="houlsby")
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".peft." in key:
                parameter.add_(torch.randn_like(parameter))
    save_adapter(model, tmp_path / "old")
    card = json.loads((tmp_path / "old" / "adapter.json").read_text(encoding="utf-8"))
    card["format"] = 1
    (tmp_path / "old" / "adapter.json").write_text(json.dumps(card), encoding="utf-8")
    x = pictures()()["x"]
    torch.testing.assert_close(load_adapter(stock(gamma), tmp_path / "old")(x), model(x), rtol=1e-5, atol=1e-5)


def test_settings_mean_what_they_meant() -> None:
    assert STAdapter.of_card({"width": 3}, 1) == {"width": 3, "mean_first": False}
    assert STAdapter.of_card({"width": 3}, 2) == {"width": 3}
    assert NOAH.of_card({"settings": {"vpt": {"dropout": 0.1}}}, 1)["settings"]["adapter"] == {"activation": "gelu"}
    assert NOAH.of_card({"settings": {"adapter": {"activation": "relu"}}}, 1)["settings"]["adapter"] == {
        "activation": "relu"
    }
    assert NOAH.of_card({}, 2) == {}


def test_a_run_that_was_begun_when_a_method_was_another_does_not_go_on() -> None:
    """Its checkpoint has no format; of one whose settings say all that changed nothing is refused."""
    begun: dict[str, dict] = {}
    for settings in ({}, {"settings": {"adapter": {"activation": "gelu"}}}):
        module = Classifier(
            adapt(stock(None), "noah", widths={"adapter": 2}, **settings), Classes("abcde"), 10, (0.5,) * 3, (0.5,) * 3
        )
        module.on_save_checkpoint(begun)
        module.on_load_checkpoint(begun)
        del begun["format"]
        if settings:
            module.on_load_checkpoint(begun)
        else:
            with pytest.raises(
                PeftError, match="begun by a version in which noah computed something else.*--overwrite"
            ):
                module.on_load_checkpoint(begun)
