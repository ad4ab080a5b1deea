"""Several adapter folders load onto one model under prefixes."""

import pytest
import torch

from peft_core import PeftError, adapt, load_adapter, remove, save_adapter
from peft_core.testing import perturb
from tests.tiny import MODELS


def test_two_adapters_on_one_model(tmp_path):
    tiny = MODELS["unet"]
    alone = []
    for name, settings in {"a": {"rank": 2}, "b": {"rank": 3, "targets": ("mlp",)}}.items():
        model = adapt(tiny.model(), "lora", **settings)
        perturb(model)
        save_adapter(model, tmp_path / name)
        alone.append(tiny(model.eval()))
    both = tiny.model().eval()
    load_adapter(both, tmp_path / "a", prefix="a_")
    load_adapter(both, tmp_path / "b", prefix="b_")
    assert set(both.__dict__["_peft_record"].adaptations) == {"a_lora", "b_lora"}
    y = tiny(both)
    assert (y - alone[0]).abs().max() > 1e-3 and (y - alone[1]).abs().max() > 1e-3
    remove(both, "a_lora")
    torch.testing.assert_close(tiny(both), alone[1])
    with pytest.raises(PeftError, match="adapted already"):
        load_adapter(both, tmp_path / "a")
    with pytest.raises(PeftError, match="already has an adaptation"):
        load_adapter(both, tmp_path / "b", prefix="b_")
    torch.testing.assert_close(tiny(both), alone[1])
