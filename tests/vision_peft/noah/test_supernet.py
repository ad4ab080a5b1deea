"""A subnet of the supernet is the model that `adapt` builds with the sliced weights: outputs, gradients, counts, files."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from peft_core import PeftError, adapt, count_parameters, load_adapter
from tests.vision_peft.noah.conftest import SPACE, images, some, stock
from vision_peft.noah.baselines import baselines, uniform
from vision_peft.noah.export import preset_text, read_preset, write_weights
from vision_peft.noah.forms import Forms
from vision_peft.noah.space import Space
from vision_peft.noah.supernet import Supernet, SupernetClassifier
from vision_peft.tasks.classify import Classes

SPACES = [
    SPACE,
    Space(methods=("vpt", "dora", "adaptformer"), dims=(1, 3), depths=(1, 4), settings={"dora": {"alpha": 4.0}}),
    Space(methods=("loha", "adapter_plus"), dims=(2, 3), depths=(0, 2, 4), settings={"loha": {"targets": ["proj"]}}),
    Space(methods=("adapter", "lora"), dims=(1, 2), depths=(4,), settings={"adapter": {"position": "parallel"}}),
]


def supernet(space: Space, perturbed: bool = True) -> Supernet:
    model, forms = stock(), Forms(stock(), space)
    adapt(model, space.method(space.widest(forms.blocks)))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and perturbed:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return Supernet(model, forms)


def built(net: Supernet, subnet) -> nn.Module:
    """The subnet as `adapt` makes it, with the supernet's sliced weights."""
    model = adapt(stock(), net.forms.space.method(subnet))
    missing = model.load_state_dict(net.state(subnet), strict=False)
    assert not missing.unexpected_keys
    return model


@pytest.mark.parametrize("space", SPACES, ids=lambda space: "-".join(space.methods))
def test_slicing_equals_a_fresh_module_of_that_width(space: Space) -> None:
    net = supernet(space)
    for subnet in some(space, 5):
        model, labels = built(net, subnet), torch.tensor([0, 3, 4])
        net.choose(subnet)
        assert torch.equal(net(images()), model(images()))
        assert net.forms.count(subnet) == count_parameters(model).inserted
        net.model.zero_grad()
        F.cross_entropy(net(images()), labels).backward()
        F.cross_entropy(model(images()), labels).backward()
        wide = dict(net.model.named_parameters())
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                part = wide[key].grad[tuple(slice(size) for size in parameter.shape)]
                torch.testing.assert_close(part, parameter.grad)
                # what was not chosen gets none
                torch.testing.assert_close(wide[key].grad.abs().sum(), parameter.grad.abs().sum())


def test_identity_at_step_0() -> None:
    space = Space(methods=("lora", "adapter"), dims=(1, 2), depths=(2, 4))
    net, frozen = supernet(space, perturbed=False), stock()
    net.model.head.load_state_dict(frozen.head.state_dict())
    for subnet in some(space, 3):
        net.choose(subnet)
        assert torch.equal(net(images()), frozen(images()))
    net = supernet(SPACE, perturbed=False)  # prompts are no identity: with them, it is prompt tuning alone
    subnet = some(SPACE, 1)[0]
    net.choose(subnet)
    prompts = adapt(stock(), "noah", widths={"vpt": subnet[0]})
    prompts.load_state_dict({k: v for k, v in net.state(subnet).items() if k in prompts.state_dict()}, strict=False)
    assert torch.equal(net(images()), prompts(images()))


def test_exported_files_give_the_supernets_outputs(tmp_path: Path) -> None:
    net = supernet(SPACE)
    subnet = some(SPACE, 1)[0]
    net.choose(subnet)
    write_weights(tmp_path / "adapter", net, subnet, class_names=list("abcde"))
    loaded = load_adapter(stock(), tmp_path / "adapter")
    assert torch.equal(loaded(images()), net(images()))
    (tmp_path / "subnet.yaml").write_text(preset_text(SPACE.method(subnet), "about"))
    again = adapt(stock(), tmp_path / "subnet.yaml")
    assert count_parameters(again).inserted == net.forms.count(subnet)
    assert read_preset(str(tmp_path / "subnet.yaml")).parts() == SPACE.method(subnet).parts()
    with pytest.raises(PeftError, match="no subnet"):
        read_preset("lora_all")


def test_each_steps_subnet_is_a_function_of_seed_and_step() -> None:
    def drawn(seed: int) -> list:
        net = SupernetClassifier(
            adapt(stock(), SPACE.method(SPACE.widest(4))),
            Classes("abcde"),
            10,
            (0.5,) * 3,
            (0.5,) * 3,
            space=SPACE,
            seed=seed,
        )
        return [net.subnet(step) for step in range(20)]

    assert drawn(0) == drawn(0) != drawn(1)
    assert len(set(drawn(0))) > 15


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (Space(depths=(3, 6)), r"goes 6 blocks deep, but the backbone has 4: give --space.depths 3\."),
        (Space(dims=(5, 50), depths=(2,)), "above the layer's width 48"),
        (Space(methods=("lokr",), dims=(1, 30), depths=(2,)), "lokr of width 1 is no part of one of width 30"),
        (Space(methods=("bitfit",), depths=(2,)), "no width"),
    ],
)
def test_spaces_that_a_backbone_cannot_hold(space: Space, says: str) -> None:
    with pytest.raises(PeftError, match=says):
        Forms(stock(), space)


@pytest.mark.parametrize("wrong", [{"dims": ()}, {"dims": (0, 1)}, {"depths": (0,)}, {"methods": ()}])
def test_wrong_spaces(wrong: dict) -> None:
    with pytest.raises(PeftError, match="the space"):
        Space(**wrong)


@pytest.mark.parametrize("limit", [1500, 5000, 100_000])
def test_baselines_stay_within_the_budget(forms: Forms, limit: int) -> None:
    found = baselines(stock(), forms, limit, seed=0)
    counts = {name: count_parameters(adapt(stock(), method)).inserted for name, method in found.items()}
    assert max(counts.values()) <= limit and set(counts) >= {"random", "uniform_vpt", "uniform_lora"}
    assert found["random"] == baselines(stock(), forms, limit, seed=0)["random"]
    for name in found.keys() - {"random"}:  # one wider would be too much, or wider than the layer
        ((part, width),) = found[name].widths.items()
        try:
            wider = count_parameters(adapt(stock(), "noah", widths={part: width + 1})).inserted
        except PeftError:
            continue
        assert wider > limit
    assert set(baselines(stock(), forms, 500, seed=0)) == {"uniform_vpt"}
    assert uniform(stock(), "adapter", 10, SPACE.method(SPACE.smallest(4))) is None
