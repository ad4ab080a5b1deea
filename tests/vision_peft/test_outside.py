"""Adapted classifiers from outside their forward: exported, frozen BatchNorm, heads of any kind, features between blocks."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from peft_core import adapt, disabled, load_adapter, merge, remove, save_adapter
from peft_core.testing.families import Written
from tests.tiny import MODELS, vit
from vision_peft.video.classified import as_video

HYPER: dict[str, dict[str, Any]] = {
    "adapter": {}, "dora": {}, "lokr": {}, "lora": {}, "oft": {}, "vpt_deep": {},
    "noah": {"widths": {"vpt": 2, "lora": 2, "adapter": 2}}, "st_adapter": {"frames": 2, "width": 4},
}  # fmt: skip
"""A kind of graft each, and of one kind those whose sums follow the batch in other ways."""
ALSO: dict[str, dict[str, Any]] = {
    "adapter_plus": {}, "adaptformer": {"bottleneck": 4}, "bitfit": {}, "diff_fit": {}, "ia3": {}, "layer_norm": {},
    "linear": {}, "loha": {}, "ssf": {}, "vpt": {}, "aim": {"frames": 2, "width": 4},
}  # fmt: skip


@pytest.mark.parametrize("method", [*HYPER, *(pytest.param(name, marks=pytest.mark.slow) for name in ALSO)])
def test_export_with_a_batch_of_any_size(method: str) -> None:
    stock, shape, settings = vit(depth=1)(), (3, 32, 32), (HYPER | ALSO)[method]
    if "frames" in settings:
        stock, shape = as_video(stock, 2, (32, 32), {"head": "batch_norm"}), (2, 3, 32, 32)
    model = adapt(stock, method, **settings).eval()
    batch = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(model, (torch.randn(2, *shape),), dynamic_shapes=batch).module()
    for size in (1, 5):
        x = torch.randn(size, *shape)
        torch.testing.assert_close(program(x), model(x), rtol=1e-5, atol=1e-5)


# ---- what is frozen is still ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hybrid() -> Callable[[], nn.Module]:
    torch.manual_seed(0)
    return Written(timm.create_model("vit_small_resnet26d_224", num_classes=5, img_size=32, depth=1)).read


def train(model: nn.Module, shape: tuple[int, ...] = (3, 32, 32), steps: int = 3, classes: int = 5) -> nn.Module:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05)
    model.train()
    for step in range(steps):
        x = torch.randn(4, *shape, generator=torch.Generator().manual_seed(step)) * 2 + 1
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), torch.arange(4) % classes).backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize("method", ["linear", "vpt"])
def test_frozen_batch_norm_does_not_move(method: str, hybrid: Callable[[], nn.Module], tmp_path: Path) -> None:
    model, x = train(adapt(hybrid(), method)), torch.randn(2, 3, 32, 32)
    before = {key: value for key, value in hybrid().state_dict().items() if "running" in key or "batches" in key}
    state = model.state_dict()
    assert before and all(torch.equal(state[key], value) for key, value in before.items())
    again = load_adapter(hybrid(), save_adapter(model, tmp_path / "a")).eval()
    torch.testing.assert_close(again(x), model(x))
    stock = hybrid().eval()
    stock.head.load_state_dict(model.head.state_dict())
    torch.testing.assert_close(remove(model)(x), stock(x))


# ---- heads of any kind ---------------------------------------------------------------------------------------------


class Cosine(nn.Module):
    """10 cos(x, w) for each class."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.randn(classes, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 10 * nn.functional.normalize(x, dim=-1) @ nn.functional.normalize(self.directions, dim=-1).T


HEADS = {
    "mlp": lambda: nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 16), nn.GELU(), nn.Linear(16, 5)),
    "cosine": lambda: Cosine(48, 5),
    "batch_norm": lambda: nn.Sequential(nn.BatchNorm1d(48, affine=False, eps=1e-6), nn.Linear(48, 5)),
    "batch_norm_affine": lambda: nn.Sequential(nn.BatchNorm1d(48), nn.Linear(48, 5)),
}


@pytest.mark.parametrize("method", ["linear", "lora", "ssf"])
@pytest.mark.parametrize("head", HEADS)
def test_what_trains_in_a_head_is_saved(head: str, method: str, tmp_path: Path) -> None:
    def stock(seed: int) -> nn.Module:
        torch.manual_seed(0)
        model = vit()()
        torch.manual_seed(seed)
        model.head = HEADS[head]()
        return model

    model, x = adapt(stock(1), method), torch.randn(3, 3, 32, 32)
    fresh = {key: value.clone() for key, value in model.head.state_dict().items()}
    train(model, (3, 32, 32))
    assert all(parameter.requires_grad for parameter in model.head.parameters())
    assert all(not torch.equal(value, fresh[key]) for key, value in model.head.state_dict().items())
    again = load_adapter(stock(2), save_adapter(model, tmp_path / "a")).eval()
    torch.testing.assert_close(again(x), model(x))


def test_a_head_with_batch_norm_over_frames(tmp_path: Path) -> None:
    def stock() -> nn.Module:
        return as_video(MODELS["vit"].model(), 2, (32, 32), {"head": "batch_norm"})

    model, x = train(adapt(stock(), "st_adapter", frames=2, width=4), (2, 3, 32, 32)), torch.randn(3, 2, 3, 32, 32)
    again = load_adapter(stock(), save_adapter(model, tmp_path / "a")).eval()
    torch.testing.assert_close(again(x), model(x))


# ---- between blocks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("name", ["vit", "deit", "average_pooled"])
def test_features_between_blocks_hold_no_prompts(name: str, deep: bool) -> None:
    stock, x = MODELS[name].model().eval(), torch.randn(2, 3, 32, 32)
    model = adapt(MODELS[name].model(), "vpt", tokens=4, deep=deep).eval()
    kept = dict(indices=[0, 1, 2], return_prefix_tokens=True)
    there, here = stock.forward_intermediates(x, **kept)[1], model.forward_intermediates(x, **kept)[1]
    for (patches, prefix), (own, own_prefix) in zip(there, here, strict=True):
        assert own.shape == patches.shape and own_prefix.shape == prefix.shape
        assert not torch.allclose(own, patches)
    layers = model.get_intermediate_layers(x, n=[0, 2])
    assert [tuple(layer.shape) for layer in layers] == [(2, 16, 48)] * 2
    last, whole = model.forward_intermediates(x, indices=[2])[0], model.forward_features(x)
    torch.testing.assert_close(last, whole)
    assert whole.shape == stock.forward_features(x).shape
    with disabled(model):
        torch.testing.assert_close(model.forward_intermediates(x, indices=[0], intermediates_only=True)[0],
                                   stock.forward_intermediates(x, indices=[0], intermediates_only=True)[0])  # fmt: skip


def test_a_merged_model_of_a_head_with_batch_norm_is_stock() -> None:
    from vision_peft.video.classified import timm_state

    model = as_video(vit()(), 2, (32, 32), {"head": "batch_norm"})
    clip = torch.randn(3, 2, 3, 32, 32)
    train(adapt(model, "lora"), (2, 3, 32, 32))
    logits = model(clip)
    stock = vit()().eval()
    stock.load_state_dict(timm_state(merge(model)))
    torch.testing.assert_close(stock(clip.flatten(0, 1)).unflatten(0, (3, 2)).mean(1), logits, rtol=1e-4, atol=1e-5)
