"""The public verbs: adapt, merge, remove, disabled, set_scale. Each does all that it says, or leaves the model as it was."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peft_core.anatomies import anatomy_of
from peft_core.attach import (
    Adaptation,
    Record,
    attach,
    check_conflicts,
    check_slots,
    detach,
    grafts_named,
    is_inserted,
    pick,
    record_of,
    slots_of,
    unhook,
    untag,
    unwrapped,
)
from peft_core.errors import NotMergeable, PeftError
from peft_core.grafts.calls import closing, opening
from peft_core.grafts.graft import Delta
from peft_core.grafts.head import OwnHead
from peft_core.merging import check_mergeable, gathered, replace, tied_in, write
from peft_core.method import Method, Plan
from peft_core.parts.quantised.packed import let_go
from peft_core.registry import make_method
from peft_core.stock import (
    buffers_of,
    find_heads,
    freeze,
    head_of,
    head_prefixes,
    reshard,
    settle_statistics,
    silence,
    write_trained,
)


def adapt(
    model: nn.Module, method: str | Path | Method, *, name: str | None = None, train_head: bool = True, **hyper: Any
) -> nn.Module:
    """Adapt `model` in place and return it: afterwards what requires grad is the adapter, and the head.

    Args:
        model: a timm ViT, an open_clip model or tower, a CLIP text model, a diffusers UNet.
        method: a method's name, a preset's name or YAML path, or a method's dataclass.
        name: the adaptation's name, by default its method's; a second adaptation is added to the first.
        train_head: whether the classifier head (where the model has one) trains too; of several adaptations on one model
            it is enough that one says so.
        **hyper: the method's settings, e.g. `rank=8`.

    Raises:
        PeftError: unknown names, roles the model lacks, widths out of range, stock parameters that another adaptation
            trains; the model is then as it was.
    """
    if unwrapped(model) is not model:
        raise PeftError(f"adapt the module inside this {type(model).__name__}, then wrap or compile it.")
    settings = make_method(method, **hyper)
    plan = Plan(model, anatomy_of(model), settings)
    name = settings.name if name is None else name
    known: Record | None = model.__dict__.get("_peft_record")
    if known is not None and name in known.adaptations:
        raise PeftError(f'this model already has an adaptation "{name}": pass name="…" to add another one.')
    if not name.isidentifier() or hasattr(nn.ModuleDict, name):
        raise PeftError(f'"{name}" cannot be an adaptation\'s name: use letters, digits and underscores.')
    settings.install(plan)
    heads = find_heads(model, plan.anatomy) if known is None else known.head_paths
    in_head = tuple(f"{path}." for path in heads)
    # what another adaptation inserted at a module that is to train is that one's
    trained = [key for key in dict.fromkeys(plan.trained) if not key.startswith(in_head) and not is_inserted(key)]
    if not plan.grafts and not trained and not settings.head_alone:
        raise PeftError(
            f"{settings.name} finds nothing to change on this {plan.anatomy.family}: its blocks, widths and targets leave "
            "nothing."
        )
    check_conflicts(model, name, plan, trained)
    check_slots(model, plan)
    adaptation = Adaptation(name, settings, trained, train_head=train_head and not settings.keeps_head)
    try:
        _install(model, plan, adaptation, heads)
    except BaseException:
        take_out(model, adaptation)
        raise
    let_go(model)
    return model


def _install(model: nn.Module, plan: Plan, adaptation: Adaptation, heads: list[str]) -> None:
    if "_peft_record" not in model.__dict__:
        record = model.__dict__["_peft_record"] = Record(head_paths=heads, buffers=buffers_of(model))
        freeze(model, record, adaptation.train_head)
        model.register_load_state_dict_post_hook(_forgive_missing_adapters)
        model.register_forward_pre_hook(opening, prepend=True)
        model.register_forward_hook(closing, always_call=True)
    record = record_of(model)
    record.adaptations[adaptation.name] = adaptation
    attach(model, plan, adaptation.name)
    parameters = dict(model.named_parameters())
    for key in adaptation.trained:
        if adaptation.method.keeps_originals:
            adaptation.originals[key] = parameters[key].detach().clone()
        parameters[key].requires_grad_(True)
    if adaptation.train_head:
        for tensor in head_of(model).values():
            if isinstance(tensor, nn.Parameter):
                tensor.requires_grad_(True)
    if adaptation.method.silences_dropout:
        record.silenced += silence(model)
    settle_statistics(model)
    model.train(model.training)  # new submodules follow the model's mode


def _forgive_missing_adapters(module: nn.Module, keys: Any) -> None:
    """A stock checkpoint has no adapter keys; load_adapter compares key sets itself."""
    keys.missing_keys[:] = [key for key in keys.missing_keys if not is_inserted(key)]


# ---- out -----------------------------------------------------------------------------------------------------------


def remove(model: nn.Module, name: str | None = None) -> nn.Module:
    """Take one adaptation (or all) out again: the model as it came, but for the head, which stays as trained.

    Raises:
        PeftError: the adaptation overwrote stock weights without keeping them (`full`).
    """
    inner = unwrapped(model)
    chosen = pick(inner, name)
    for adaptation in chosen:
        _needs_originals(adaptation, "removed")
    for adaptation in chosen:
        write_trained(inner, adaptation, 0.0)
    record = record_of(inner)
    before, last = record.buffers | record.loaded, len(chosen) == len(record.adaptations)
    for adaptation in chosen:
        take_out(inner, adaptation)
    if last:
        state, head = inner.state_dict(), head_prefixes(record)
        with torch.no_grad():
            for key, original in before.items():
                if key in state and not key.startswith(head):
                    state[key].copy_(original)
    return model


def take_out(model: nn.Module, adaptation: Adaptation) -> None:
    """Forget one adaptation, with the stock weights as they are now."""
    detach(model, adaptation.name)
    record: Record | None = model.__dict__.get("_peft_record")
    if record is None:
        return
    record.adaptations.pop(adaptation.name, None)
    parameters = dict(model.named_parameters())
    for key in adaptation.trained:
        if key in parameters:
            parameters[key].requires_grad_(False)
    settle_statistics(model)
    if record.adaptations:
        return
    untag(model)
    unhook(model, opening, closing)
    for path, attribute, rate in record.silenced:
        setattr(model.get_submodule(path), attribute, rate)
    for key, required in record.required_grad.items():
        if key in parameters:
            parameters[key].requires_grad_(required)
    hooks = model._load_state_dict_post_hooks
    for key in [key for key, hook in hooks.items() if hook is _forgive_missing_adapters]:
        del hooks[key]
    del model.__dict__["_peft_record"]


# ---- into the weights ----------------------------------------------------------------------------------------------


def merge(model: nn.Module, name: str | None = None) -> nn.Module:
    """Write one adaptation (or all) into the stock weights: stock classes, stock keys, same outputs.

    Raises:
        NotMergeable: with the reason, e.g. a change that acts on the same weight before it and would act after it then.
    """
    inner = unwrapped(model)
    chosen = pick(inner, name)
    names, tied = [adaptation.name for adaptation in chosen], tied_in(inner)
    for adaptation in chosen:
        if adaptation.method.not_mergeable is not None:
            raise NotMergeable(f"{adaptation.name} cannot be merged: {adaptation.method.not_mergeable}")
        for module, slot, graft in grafts_named(inner, adaptation.name):
            check_mergeable(module, slot, graft, adaptation.name, names, tied)
    reshard(inner)
    undo: list[tuple[Tensor, Tensor]] = []
    inserted = [graft for owner in names for _, _, graft in grafts_named(inner, owner)]
    try:
        with torch.no_grad(), gathered(inserted):
            for module in inner.modules():
                for owner in [owner for owner in slots_of(module) if owner in names]:
                    for graft in slots_of(module)[owner].values():
                        if graft.enabled and isinstance(graft, Delta):
                            write(inner, module, graft, undo)
    except BaseException:
        with torch.no_grad():
            for tensor, before in reversed(undo):
                tensor.copy_(before)
        raise
    own_heads = [
        (module, graft)
        for owner in names
        for module, _, graft in grafts_named(inner, owner)
        if isinstance(graft, OwnHead)
    ]
    for adaptation in chosen:
        take_out(inner, adaptation)
    for module, graft in own_heads:
        if graft.enabled:
            replace(inner, module, graft.instead)
    return model


# ---- how much ------------------------------------------------------------------------------------------------------


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
    model = unwrapped(model)
    chosen = pick(model, name)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise PeftError(f"an adaptation's scale is a finite number, not {scale!r}.")
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
    inner = unwrapped(model)
    before = {adaptation.name: adaptation.scale for adaptation in pick(inner, name)}
    set_scale(inner, 0.0, name)
    try:
        yield model
    finally:
        record: Record = inner.__dict__.get("_peft_record") or Record()
        for adaptation_name, scale in before.items():
            if adaptation_name in record.adaptations:  # it may have been taken out meanwhile
                set_scale(inner, scale, adaptation_name)
