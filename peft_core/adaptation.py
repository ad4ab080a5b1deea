"""The public verbs: adapt, merge, remove, disabled, set_scale."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peft_core.anatomies import anatomy_of
from peft_core.attach import (
    Adaptation,
    Record,
    attach,
    detach,
    grafts_named,
    is_inserted,
    pick,
    record_of,
    silence,
    untag,
    write_trained,
)
from peft_core.errors import NotMergeable, PeftError
from peft_core.grafts.graft import Delta
from peft_core.grafts.weight_changes import changed_bias, changed_weight
from peft_core.method import Method, Plan
from peft_core.registry import make_method


def adapt(
    model: nn.Module, method: str | Path | Method, *, name: str | None = None, train_head: bool = True, **hyper: Any
) -> nn.Module:
    """Adapt `model` in place and return it: afterwards what requires grad is the adapter, and the head.

    Args:
        model: a timm ViT, an open_clip model or tower, a CLIP text model, a diffusers UNet.
        method: a method's name, a preset's name or YAML path, or a method's dataclass.
        name: the adaptation's name, by default its method's; a second adaptation is added to the first.
        train_head: whether the classifier head (where the model has one) trains too.
        **hyper: the method's settings, e.g. `rank=8`.

    Raises:
        PeftError: unknown names, roles the model lacks, widths out of range; the model is then as it was.
    """
    settings = make_method(method, **hyper)
    plan = Plan(model, anatomy_of(model), settings)
    name = settings.name if name is None else name
    known: Record = model.__dict__.get("_peft_record") or Record()
    if name in known.adaptations:
        raise PeftError(f'this model already has an adaptation "{name}": pass name="…" to add another one.')
    if not name.isidentifier() or hasattr(nn.ModuleDict, name):
        raise PeftError(f'"{name}" cannot be an adaptation\'s name: use letters, digits and underscores.')
    settings.install(plan)
    if not known.adaptations:
        _freeze(model, known, plan.anatomy.heads, train_head)
    attach(model, plan, name)
    adaptation = Adaptation(name, settings, [key for key in plan.trained if key not in known.heads])
    parameters = dict(model.named_parameters())
    for key in adaptation.trained:
        if settings.keeps_originals:
            adaptation.originals[key] = parameters[key].detach().clone()
        parameters[key].requires_grad_(True)
    if settings.silences_dropout:
        known.silenced += silence(model)
    known.adaptations[name] = adaptation
    model.train(model.training)  # new submodules follow the model's mode
    return model


def _freeze(model: nn.Module, record: Record, heads: list[str], train_head: bool) -> None:
    for key, parameter in model.named_parameters():
        record.required_grad[key] = parameter.requires_grad
        in_head = any(key.startswith(head + ".") for head in heads)
        parameter.requires_grad_(in_head and train_head)
        if in_head:
            record.heads.append(key)
            if train_head:
                record.head.append(key)
    model.__dict__["_peft_record"] = record
    model.register_load_state_dict_post_hook(_forgive_missing_adapters)


def _forgive_missing_adapters(module: nn.Module, keys: Any) -> None:
    """A stock checkpoint has no adapter keys; load_adapter compares key sets itself."""
    keys.missing_keys[:] = [key for key in keys.missing_keys if not is_inserted(key)]


def remove(model: nn.Module, name: str | None = None) -> nn.Module:
    """Take one adaptation (or all) out again: the model as it came, but for the head, which stays as trained.

    Raises:
        PeftError: the adaptation overwrote stock weights without keeping them (`full`).
    """
    chosen = pick(model, name)
    for adaptation in chosen:
        _needs_originals(adaptation, "removed")
    for adaptation in chosen:
        write_trained(model, adaptation, 0.0)
        take_out(model, adaptation)
    return model


def merge(model: nn.Module, name: str | None = None) -> nn.Module:
    """Write one adaptation (or all) into the stock weights: stock classes, stock keys, same outputs.

    Raises:
        NotMergeable: with the reason; the model is then as it was.
    """
    chosen = pick(model, name)
    for adaptation in chosen:
        if adaptation.method.not_mergeable is not None:
            raise NotMergeable(f"{adaptation.name} cannot be merged: {adaptation.method.not_mergeable}")
        for module, slot, graft in grafts_named(model, adaptation.name):
            _check_mergeable(module, slot, graft)
    with torch.no_grad():
        for adaptation in chosen:
            for module, slot, graft in grafts_named(model, adaptation.name):
                if graft.enabled:
                    _write(module, slot, graft)  # type: ignore[arg-type]
            take_out(model, adaptation)
    return model


def _check_mergeable(module: nn.Module, slot: str, graft: nn.Module) -> None:
    if not isinstance(graft, Delta):
        raise NotMergeable(f"a {type(module).__name__} at role {slot} has no weight that could take what follows it.")
    bias = module._parameters.get(_names(slot, module)[1])
    if bias is None and isinstance(graft, Delta) and graft.bias(None) is not None:
        raise NotMergeable(f"a {type(module).__name__} at role {slot} has no bias that could take the shift.")


def _names(slot: str, module: nn.Module) -> tuple[str, str]:
    return ("in_proj_weight", "in_proj_bias") if "in_proj_weight" in module._parameters else ("weight", "bias")


def _write(module: nn.Module, slot: str, delta: Delta) -> None:
    weight, bias = (module._parameters.get(name) for name in _names(slot, module))
    new_bias = changed_bias(bias, [delta], weight.dtype)  # type: ignore[union-attr]
    weight.copy_(changed_weight(weight, [delta]))  # type: ignore[union-attr,arg-type]
    if bias is not None:
        bias.copy_(new_bias)  # type: ignore[arg-type]


def take_out(model: nn.Module, adaptation: Adaptation) -> None:
    """Forget one adaptation, with the stock weights as they are now."""
    record = record_of(model)
    detach(model, adaptation.name)
    del record.adaptations[adaptation.name]
    parameters = dict(model.named_parameters())
    still = {key for other in record.adaptations.values() for key in other.trained}
    for key in set(adaptation.trained) - still:
        parameters[key].requires_grad_(False)
    if not record.adaptations:
        untag(model)
        for path, attribute, rate in record.silenced:
            setattr(model.get_submodule(path), attribute, rate)
        for key, required in record.required_grad.items():
            parameters[key].requires_grad_(required)
        hooks = model._load_state_dict_post_hooks
        for key in [key for key, hook in hooks.items() if hook is _forgive_missing_adapters]:
            del hooks[key]
        del model.__dict__["_peft_record"]


def _needs_originals(adaptation: Adaptation, verb: str) -> None:
    if not adaptation.method.keeps_originals:
        raise PeftError(
            f"{adaptation.name} overwrites the stock weights and keeps no copy, so it cannot be {verb}: load the model anew."
        )


def set_scale(model: nn.Module, scale: float, name: str | None = None) -> None:
    """Weigh an adaptation: 0 is the frozen model, 1 the adapted one, W + scale · ΔW in between and beyond.

    Raises:
        PeftError: for methods whose effect has no size (prompt tokens) or that keep no originals (`full`).
    """
    chosen = pick(model, name)
    for adaptation in chosen:
        _needs_originals(adaptation, "scaled")
        for _, _, graft in grafts_named(model, adaptation.name):
            if not graft.scalable and scale not in (0.0, 1.0):
                raise PeftError(f"{adaptation.name} inserts tokens, which are there or not: its scale is 0 or 1.")
    for adaptation in chosen:
        write_trained(model, adaptation, scale)
        for _, _, graft in grafts_named(model, adaptation.name):
            graft.factor, graft.enabled = (1.0 if not graft.scalable else scale), scale != 0.0
        adaptation.scale = scale


@contextmanager
def disabled(model: nn.Module, name: str | None = None) -> Iterator[nn.Module]:
    """Within the block the model is the frozen one (with its trained head)."""
    chosen = pick(model, name)
    before = {adaptation.name: adaptation.scale for adaptation in chosen}
    set_scale(model, 0.0, name)
    try:
        yield model
    finally:
        for adaptation_name, scale in before.items():
            set_scale(model, scale, adaptation_name)
