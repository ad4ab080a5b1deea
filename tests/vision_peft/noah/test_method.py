"""The method `noah`: exact counts of the released subnets, composition, wrong widths."""

import pytest
import timm
import torch

from peft_core import PeftError, adapt, count_parameters
from peft_core.config_files import list_configs
from tests.tiny import vit_b16
from tests.vision_peft.noah.conftest import images, stock

RELEASED = {
    "cifar100": 320_330, "caltech101": 426_313, "dtd": 287_298, "oxford_flowers102": 386_367, "oxford_pet": 365_622,
    "svhn": 431_686, "sun397": 287_278, "patch_camelyon": 330_290, "eurosat": 397_907, "resisc45": 365_621,
    "diabetic_retinopathy": 382_533, "clevr_count": 382_543, "clevr_dist": 353_332, "dmlab": 392_511, "kitti": 397_888,
    "dsprites_loc": 334_914, "dsprites_ori": 387_151, "smallnorb_azi": 291_877, "smallnorb_ele": 321_090,
}  # fmt: skip


@pytest.mark.parametrize("task", RELEASED)
def test_released_subnets_have_their_exact_counts(task: str) -> None:
    assert count_parameters(adapt(vit_b16(), f"noah/{task}")).inserted == RELEASED[task]


def test_released_subnets_are_these_nineteen() -> None:
    found = {name.removeprefix("noah/") for name in list_configs("method", "vision") if name.startswith("noah/")}
    assert found == set(RELEASED) and round(sum(RELEASED.values()) / 19) == 360_134


def test_it_equals_its_methods_adapted_one_by_one() -> None:
    widths = {"vpt": [2, 0, 1, 3], "lora": [1, 2, 0, 0], "adapter": [0, 1, 2, 2]}
    model = adapt(stock(), "noah", widths=widths)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".peft." in key:
                parameter.add_(0.1 * torch.randn_like(parameter))
    apart = adapt(stock(), "vpt", tokens=widths["vpt"], deep=True)
    adapt(apart, "lora", rank=widths["lora"], targets=("qkv",))
    adapt(apart, "adapter", bottleneck=widths["adapter"], activation="quick_gelu")
    values = {key.replace(".peft.noah.", ".peft."): value for key, value in model.state_dict().items()}
    names = {key: key for key in apart.state_dict()}
    for name in ("vpt", "lora", "adapter"):
        names = {key: plain.replace(f".peft.{name}.", ".peft.") for key, plain in names.items()}
    apart.load_state_dict({key: values[plain] for key, plain in names.items()})
    assert torch.equal(apart(images()), model(images()))
    assert count_parameters(apart).inserted == count_parameters(model).inserted


def test_drop_path_of_the_backbone_stays_on() -> None:
    model = timm.create_model("test_vit", num_classes=3, drop_path_rate=0.5)
    adapt(model, "noah")
    assert max(getattr(module, "drop_prob", 0.0) or 0.0 for module in model.modules()) == 0.5


@pytest.mark.parametrize(
    ("widths", "says"),
    [
        ({"lora": [1, 2, 3]}, "lora got 3 widths, but the model has 4 blocks"),
        ({"bitfit": 3}, "bitfit has no width"),
        ({"lorra": 3}, 'did you mean "lora"'),
        ({"adapter": 2, "adaptformer": 2}, "leave one out"),
        ({"adapter": 49}, "above the layer's width 48"),
        ({}, "needs widths"),
    ],
)
def test_wrong_widths(widths: dict, says: str) -> None:
    model = stock()
    with pytest.raises(PeftError, match=says):
        adapt(model, "noah", widths=widths, settings={"adapter": {"position": "parallel"}})
    assert not any("peft" in key for key, _ in model.named_parameters())
