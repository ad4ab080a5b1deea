"""Which backbone an adapter belongs to: a sketch of the frozen weights, told apart without keeping them."""

import re
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peft_core.attach import Record, is_inserted
from peft_core.errors import PeftError
from peft_core.kernels.quantised import Packed, dense, packed_of
from peft_core.saved.configuration import configuration_of, differs
from peft_core.stock import also_trained, head_of, whole_of

BUCKETS, _TOLERANCE = 8, 0.02
_ROUGH = {"int2": 1.0, "int8": 0.1}
"""What rounding to few bits may change in a sketch; of other weights it changes by about 1. Others of 4 bits: 0.4."""


_OF_SIZE = re.compile(r"(^|\.)(\w*pos(ition(al)?)?_embed\w*|rel(ative)?_pos\w*)(\.weight)?$")
"""Names of tables of positions, which grow with the input: an adapter fits the same model at another size."""


class OtherPrecision(UserWarning):
    """An adapter was trained on a backbone of the same weights that is quantised otherwise."""


def backbone_of(model: nn.Module, without: Iterable[str] = ()) -> dict[str, Any]:
    """Name and fingerprint of the stock model: a sketch of its frozen weights that survives a change of precision.

    The frozen tensors fall into 8 buckets by the CRC-32 of their names; each gives Σ w / √(Σ w²), which changes by about
    1 from one set of weights to another and by about 0.001 where they are rounded to bfloat16. The head, what adaptations
    train and the parameters `without` are left out.
    """
    record: Record = model.__dict__.get("_peft_record") or Record()
    # FSDP2 makes a class of its own above the model's
    stock = next(each for each in type(model).__mro__ if not each.__module__.startswith("torch.distributed"))
    left_out = {key for adaptation in record.adaptations.values() for key in adaptation.trained} | head_of(model).keys()
    left_out |= set(without) | set(also_trained(model) if record.adaptations else ())
    frozen: dict[str, Any] = {
        k: p.detach() for k, p in model.named_parameters() if not is_inserted(k) and k not in left_out
    }
    sizes = {k: p.numel() for k, p in frozen.items()}
    kinds = set()
    for path, module in model.named_modules():
        packed = packed_of(module)
        if packed is not None:  # as the float model's
            kinds.add(packed.name)
            own = {f"{path}.{name}" for name in module._parameters if name != "bias"}
            frozen = {k: p for k, p in frozen.items() if k not in own}
            if not own & left_out:
                frozen[f"{path}.weight"], sizes[f"{path}.weight"] = packed, packed.shape[0] * packed.shape[1]
    positions = {key: frozen.pop(key) for key in list(frozen) if _OF_SIZE.search(key)}
    without_positions, whole = _sketches(frozen, positions)
    count, more = (sum(sizes[key] for key in part) for part in (frozen, positions))
    return {
        "class": f"{stock.__module__}.{stock.__qualname__}",
        "name": _name(model),
        "parameters": count + more,
        "fingerprint": whole,
        **({"any_size": {"parameters": count, "fingerprint": without_positions}} if more else {}),
        "configuration": configuration_of(model),
        **({"quantised": ", ".join(sorted(kinds))} if kinds else {}),
    }


def _name(model: nn.Module) -> str | None:
    config = getattr(model, "pretrained_cfg", None) or {}
    if not config.get("architecture"):
        return None
    return ".".join(part for part in (config["architecture"], config.get("tag")) if part)


def _sketches(*parts: dict[str, Any]) -> Iterator[list[float]]:
    """Of each part's tensors together with those of the parts before it."""
    sums, squares = [0.0] * BUCKETS, [0.0] * BUCKETS
    for tensors in parts:
        for key, tensor in tensors.items():
            tensor = dense(tensor, torch.float32) if isinstance(tensor, Packed) else tensor
            if tensor.is_meta:
                raise PeftError("a model on the meta device has no weights to save or to load an adapter onto.")
            bucket, values = zlib.crc32(key.encode()) % BUCKETS, whole_of(tensor).float()
            sums[bucket] += values.sum(dtype=torch.float64).item()
            squares[bucket] += values.square().sum(dtype=torch.float64).item()
        yield [round(s / max(q, 1e-30) ** 0.5, 4) for s, q in zip(sums, squares, strict=True)]


def is_sketch(found: Any) -> bool:
    return isinstance(found, list) and len(found) == BUCKETS and all(isinstance(each, int | float) for each in found)


def _of_any_size(here: dict[str, Any], there: dict[str, Any]) -> bool:
    """Whether the two differ in the size of their positions alone."""
    own, other = here.get("any_size"), there.get("any_size")
    return (
        isinstance(own, dict)
        and isinstance(other, dict)
        and here["parameters"] != there["parameters"]
        and own["parameters"] == other.get("parameters")
        and is_sketch(other.get("fingerprint"))
    )


def check_backbone(model: nn.Module, card: dict[str, Any], folder: Path, without: Iterable[str] = ()) -> None:
    """Raises PeftError unless `model` is the backbone that a card's entry describes, the parameters `without` apart; its
    positions may be of another size of input."""
    here = backbone_of(model, without)
    if _of_any_size(here, card):
        card, here = card | card["any_size"], here | here["any_size"]
    for what, key in (("architecture", "class"), ("number of frozen parameters", "parameters")):
        if card[key] != here[key]:
            raise PeftError(
                f"{folder} was trained on another backbone: its {what} is {card[key]}, this model's {here[key]}."
            )
    there, now = card.get("quantised"), here.get("quantised")
    allowed = max((_ROUGH.get(kind, 0.4) for kinds in (there, now) if kinds and there != now
                   for kind in str(kinds).split(", ")), default=_TOLERANCE)  # fmt: skip
    if any(abs(a - b) > allowed for a, b in zip(card["fingerprint"], here["fingerprint"], strict=True)):
        names = f" ({card['name']}, this one is {here['name']})" if card["name"] or here["name"] else ""
        raise PeftError(
            f"{folder} was trained on a backbone with other weights{names}: load that one, or force the load if you mean it."
        )
    if what := differs(card.get("configuration") or {}, here["configuration"]):
        raise PeftError(
            f"{folder} was trained on a backbone that is made otherwise ({what}): load that one, or force the load."
        )
    if there != now:
        trained, runs = (f"quantised to {kinds}" if kinds else "not quantised" for kinds in (there, now))
        warnings.warn(
            f"{folder} was trained on a backbone {trained}, and this one is {runs}: its outputs are near to those it was "
            "trained for, not the same.",
            OtherPrecision,
            stacklevel=4,
        )
