"""Convolutional, hierarchical and mixed models of timm, transformers and open_clip that have no file of their own: their
layers by kind and name, for weight changes, feature scalings and what trains stock parameters.

Nothing is said of their residual steps, so that what joins those finds none. Layers with a forward of their own, such as
convolutions that standardise their weight, are left out. Of timm's models none but those with a file of their own read a
layer's weight without calling the layer.
"""

import dataclasses
from typing import Any

from torch import nn

from peft_core.anatomies import Anatomy, Place, class_names, classifiers, has_weight, submodule

LAST = True
"""Asked when no other file knows the model."""
_HOMES = ("timm.models.", "transformers.models.", "open_clip.")
_READ = ("AttentionPool2d",)
"""Classes that read their children's weights and never call them."""
_ROLES = {
    **{name: name for name in ("qkv", "q", "k", "v", "proj", "fc1", "fc2")},
    **{f"{name}_proj": name for name in "qkv"}, **{f"to_{name}": name for name in ("qkv", "q", "k", "v")},
    "query": "q", "key": "k", "value": "v", "o_proj": "proj", "out_proj": "proj", "c_proj": "proj",
    "pwconv1": "fc1", "pwconv2": "fc2",
}  # fmt: skip
"""Last name of a linear layer, or of a convolution over single pixels, -> its role; others are `linear` and `conv`."""


def describe(model: Any) -> Anatomy | None:
    if not any(name.startswith(_HOMES) for name in class_names(model)):
        return None
    heads = _heads(model)
    inside = tuple(f"{path}." for path in heads)
    blocks = _blocks(model, heads)
    where = {path: index for index, path in enumerate(blocks)}
    anatomy = Anatomy(
        f"{type(model).__module__.partition('.')[0]} {type(model).__name__}", (), {None: blocks}, heads=heads
    )
    for path, module in model.named_modules():
        role = None if f"{path}.".startswith(inside) else _role(path, module)
        if role is not None:
            owner = model.get_submodule(path.rpartition(".")[0])
            called = type(owner).__name__ not in _READ
            anatomy.places.append(Place(role, path, _block_of(path, where), called=called))
    anatomy.default_targets = _default(model, anatomy)
    return anatomy


def _default(model: Any, anatomy: Anatomy) -> tuple[str, ...]:
    """The attention's projections, else the MLP's, else what holds most weights."""
    known = anatomy.roles()
    for roles in (("qkv",), ("q", "v"), ("fc1", "fc2")):
        if known.issuperset(roles):
            return roles
    sizes = {role: sum(model.get_submodule(p.module).weight.numel() for p in anatomy.find((role,))) for role in known}
    return (max(sorted(sizes), key=sizes.__getitem__),) if sizes else ()


def _role(path: str, module: nn.Module) -> str | None:
    if isinstance(getattr(module, "weight", None), nn.Parameter):
        forward, known = type(module).forward, _ROLES.get(path.rpartition(".")[2])
        if isinstance(module, nn.Linear):
            return known or "linear" if forward is nn.Linear.forward else None
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            if forward not in (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward):
                return None
            return known if known and set(module.kernel_size) == {1} else "conv"
        if isinstance(module, nn.LayerNorm | nn.GroupNorm | nn.RMSNorm | nn.modules.batchnorm._BatchNorm):
            return "norm"
    return None


def _heads(model: Any) -> list[str]:
    if callable(getattr(model, "get_classifier", None)):
        return classifiers(model)
    return [name for name in ("classifier", "fc", "head", "heads") if has_weight(model, name)]


def _blocks(model: Any, heads: list[str]) -> list[str]:
    """timm's own groups of parameters, those between stem and head that are one module each."""
    if not callable(getattr(model, "group_matcher", None)):
        return []
    from timm.models import group_parameters

    found = []
    groups = group_parameters(model, model.group_matcher(coarse=False))
    for names in list(groups.values())[1:]:
        path = _shared(names)
        module = submodule(model, path) if path else None
        of_head = any(f"{head}.".startswith(f"{path}.") for head in heads)
        if module is not None and not of_head and next(module.children(), None) is not None and path not in found:
            found.append(path)
    return [path for path in found if not any(path.startswith(f"{other}.") for other in found)]


def _shared(names: list[str]) -> str:
    parts = [name.split(".")[:-1] for name in names if name.partition(".")[0] == names[0].partition(".")[0]]
    same = []
    for each in zip(*parts, strict=False):
        if len(set(each)) > 1:
            break
        same.append(each[0])
    return ".".join(same)


def placed(place: Place, where: dict[str, int]) -> Place:
    """The same in the block that it stands in, of blocks by their path."""
    return dataclasses.replace(place, block=_block_of(place.module, where))


def _block_of(path: str, where: dict[str, int]) -> int | None:
    parts = path.split(".")
    return next((where[name] for n in range(len(parts), 0, -1) if (name := ".".join(parts[:n])) in where), None)
