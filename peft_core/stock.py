"""The stock part of an adapted model: what of it is frozen, still or silent, what trains, and which head it has."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from peft_core.anatomies import Anatomy, submodule
from peft_core.attach import Adaptation, Record, is_inserted, modules_of, record_of
from peft_core.grafts.classes import Still, restore_class, swap_class
from peft_core.kernels.quantised import packed_of

# ---- the head ------------------------------------------------------------------------------------------------------


def find_heads(model: nn.Module, anatomy: Anatomy) -> list[str]:
    """Paths of the classifier: what the anatomy names, and what `get_classifier()` gives, whatever its class."""
    paths = list(anatomy.heads)
    if callable(getattr(model, "get_classifier", None)):
        found: Any = model.get_classifier()  # type: ignore
        found = found if isinstance(found, tuple | list) else (found,)
        paths += [path for path, module in model.named_modules() if any(module is head for head in found)]
    return list(dict.fromkeys(path for path in paths if path))


def head_prefixes(record: Record) -> tuple[str, ...]:
    return tuple(f"{path}." for path in record.head_paths)


def head_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of the head as it is now, by their keys."""
    record: Record = model.__dict__.get("_peft_record") or Record()
    found: dict[str, Tensor] = {}
    for path in record.head_paths:
        head = submodule(model, path)
        if head is not None:
            found |= head.state_dict(prefix=f"{path}.", keep_vars=True)
    return {key: value for key, value in found.items() if not is_inserted(key)}


def trained_head(model: nn.Module) -> dict[str, Tensor]:
    """What of the head belongs to the adaptations: all of it where it trains, or one of them says that it does."""
    head = head_of(model)
    trains = any(adaptation.train_head for adaptation in record_of(model).adaptations.values())
    return head if trains or any(tensor.requires_grad for tensor in head.values()) else {}


def freeze(model: nn.Module, record: Record, train_head: bool) -> None:
    """Everything is frozen, the head unless it is to train; what required grad before is remembered."""
    prefixes = head_prefixes(record)
    for key, parameter in model.named_parameters():
        record.required_grad[key] = parameter.requires_grad
        parameter.requires_grad_(key.startswith(prefixes) and train_head)


# ---- what moves in training although no gradient reaches it --------------------------------------------------------


def settle_statistics(model: nn.Module) -> None:
    """Norms with running statistics stay in eval, but for the head's, and for methods that train the whole model."""
    record: Record = model.__dict__.get("_peft_record") or Record()
    frozen = bool(record.adaptations) and not any(a.method.moves_statistics for a in record.adaptations.values())
    heads = head_prefixes(record)
    for path, module in list(model.named_modules()):
        if not isinstance(module, _NormBase) or is_inserted(path):
            continue
        if frozen and module.running_mean is not None and not f"{path}.".startswith(heads):
            swap_class(module, Still)
            module.train(False)
        elif isinstance(module, Still):
            restore_class(module, Still)
            module.train(model.training)


def silence(model: nn.Module) -> list[tuple[str, str, float]]:
    """Set every dropout and drop-path rate of the stock model to 0; the list says what to put back."""
    changed = []
    for path, module in model.named_modules():
        if is_inserted(path):
            continue
        name = {"DropPath": "drop_prob", "MultiheadAttention": "dropout"}.get(type(module).__name__)
        if isinstance(module, nn.MultiheadAttention):
            name = "dropout"
        if isinstance(module, nn.modules.dropout._DropoutNd):
            name = "p"
        if name is not None and (rate := getattr(module, name)):
            changed.append((path, name, rate))
            setattr(module, name, 0.0)
    return changed


# ---- stock parameters that a method trains -------------------------------------------------------------------------


@torch.no_grad()
def write_trained(model: nn.Module, adaptation: Adaptation, scale: float) -> None:
    """Stock parameters that a method trains become original + scale · (trained − original).

    The trained parameter itself is put aside and another one stands in its place, so that a graph made before still has
    the values it was made with; a sharded one is written over.
    """
    reshard(model)
    if not adaptation.trained:
        adaptation.scale = scale
        return
    parameters, owners = dict(model.named_parameters()), _owners(model)
    present = [key for key in adaptation.trained if key in parameters]
    if adaptation.scale == 1.0:
        adaptation.kept = {key: _aside(parameters[key]) for key in present}
    for key in present:
        now, trained = parameters[key], adaptation.kept[key]
        if scale == 1.0:
            _put(owners, now, trained)
        else:
            original = like(adaptation.originals[key], trained)
            value = original if scale == 0.0 else torch.lerp(original, trained.detach(), scale)
            _put(owners, now, nn.Parameter(value.clone(), requires_grad=False))
    if scale == 1.0:
        adaptation.kept = {}
    adaptation.scale = scale


def reshard(model: nn.Module) -> None:
    """Has parameters that FSDP2 gathered for a forward be parts again: the gathered ones are not those that stay."""
    for module in modules_of(model):
        own: Any = getattr(module, "reshard", None)
        if callable(own):
            own()


def _aside(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.clone()) if _is_sharded(parameter) else parameter


def _owners(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Id of a parameter -> the modules that hold it, and under which name."""
    found: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in modules_of(model):
        for name, parameter in module._parameters.items():
            found.setdefault(id(parameter), []).append((module, name))
    return found


def _put(owners: dict[int, list[tuple[nn.Module, str]]], now: nn.Parameter, new: nn.Parameter) -> None:
    if _is_sharded(now):
        now.copy_(new)
        return
    if new.device != now.device:  # the model moved meanwhile
        new.data = new.data.to(now.device)
    for module, name in owners[id(now)]:
        module._parameters[name] = new


def whole_of(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered (by all processes together); another one as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # type: ignore[attr-defined]


def _is_sharded(tensor: Tensor) -> bool:
    return hasattr(tensor, "placements")


def like(original: Tensor, parameter: Tensor) -> Tensor:
    """The original on the parameter's device, in its precision and sharded as it is."""
    original = original.to(parameter.device, parameter.dtype)
    if _is_sharded(parameter) and not _is_sharded(original):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(original, parameter.device_mesh, parameter.placements)  # type: ignore[attr-defined]
    return original


# ---- what makes the model differ from the stock one -----------------------------------------------------------------


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """What makes this model differ from the stock one: inserted tensors, stock weights that train, the head, and what
    was unfrozen by hand."""
    record = record_of(model)
    changed = {key for adaptation in record.adaptations.values() for key in adaptation.trained}
    changed |= trained_head(model).keys() | set(also_trained(model))
    state = model.state_dict()
    return {key: value for key, value in state.items() if is_inserted(key) or key in changed}


def also_trained(model: nn.Module) -> list[str]:
    """What else of the stock model changed: parameters outside the head that train although no adaptation asked for them,
    those that a file held, and buffers that moved."""
    record = record_of(model)
    known = {key for adaptation in record.adaptations.values() for key in adaptation.trained} | head_of(model).keys()
    trains = [key for key, p in model.named_parameters() if p.requires_grad and not is_inserted(key)]
    state = model.state_dict() if record.buffers else {}
    here = {
        k: before for k, before in record.buffers.items() if k in state and not state[k].is_meta and not before.is_meta
    }
    moved = [k for k, before in here.items() if not torch.equal(state[k].cpu(), before.to("cpu", state[k].dtype))]
    return [key for key in dict.fromkeys((*trains, *record.loaded, *moved)) if key not in known]


def buffers_of(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the stock model's buffers that its state dict holds, those of packed weights apart, which nothing moves."""
    return {
        key: buffer.clone()
        for path, module in model.named_modules(remove_duplicate=False)
        if packed_of(module) is None
        for name, buffer in module._buffers.items()
        if buffer is not None
        and name not in module._non_persistent_buffers_set
        and not is_inserted(key := f"{path}.{name}" if path else name)
    }
