"""An adapter trained on pictures of one size on the same model at another: its positions are resized, nothing else may differ."""

from pathlib import Path

import pytest
import timm
import torch

from peft_core import PeftError, adapt, load_adapter, save_adapter
from peft_core.saved.fingerprint import backbone_of

TINY = dict(embed_dim=24, depth=2, num_heads=2, num_classes=5)


def made(size: int, seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return timm.create_model("vit_tiny_patch16_224", img_size=size, **TINY).eval()


class Patches(torch.nn.Module):
    """What makes patches under a name of positions, as in diffusers."""

    def __init__(self, table: str) -> None:
        super().__init__()
        self.pos_embed = torch.nn.ModuleDict({"proj": torch.nn.Linear(4, 3)})
        self.table = torch.nn.ParameterDict({table: torch.randn(5, 3)})


@pytest.mark.parametrize("table", ["pos_embed", "position_embeddings", "relative_position_bias_table", "rel_pos_h"])
def test_only_tables_of_positions_may_be_of_another_size(table: str) -> None:
    assert backbone_of(Patches(table))["any_size"]["parameters"] == 15
    assert "any_size" not in backbone_of(Patches("head"))


@pytest.mark.parametrize("method", ["lora", "vpt", "bitfit"])
def test_an_adapter_at_another_size(method: str, tmp_path: Path) -> None:
    trained, other = adapt(made(32), method), made(32)
    for parameter in trained.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    save_adapter(trained, tmp_path / "a")
    for model in (trained, other):
        model.set_input_size(img_size=48)
    load_adapter(other, tmp_path / "a")
    x = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(other(x), trained.eval()(x))
    with pytest.raises(PeftError, match="other weights"):
        load_adapter(made(48, seed=1), tmp_path / "a")
