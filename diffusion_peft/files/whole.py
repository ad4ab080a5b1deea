"""What an adaptation does to the weights, written as plain LoRA layers or as whole differences, whatever its method is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_peft.files.layers import Layer, chosen
from peft_core.attach import grafts_named
from peft_core.errors import PeftError
from peft_core.grafts.graft import Delta
from peft_core.grafts.weight_changes import changed_bias, changed_weight


@dataclass(frozen=True)
class Change:
    """A module's weight and bias before and after."""

    before: Tensor
    after: Tensor
    bias_before: Tensor | None
    bias_after: Tensor | None


@torch.no_grad()
def changes_of(model: nn.Module | None, name: str | None) -> dict[str, Change]:
    """Module path -> change, of one adaptation of a model (the only one where `name` is None), those that are none left out.

    Raises:
        PeftError: several adaptations and no name, a scale other than 1, a method whose effect is none on weights alone.
    """
    adaptation = chosen(model, name)
    if model is None or adaptation is None:
        return {}
    paths = {id(module): path for path, module in model.named_modules()}
    originals = _originals(model, adaptation)
    deltas: dict[str, list[Delta]] = {}
    for module, _, graft in grafts_named(model, adaptation.name):
        if not isinstance(graft, Delta) or adaptation.method.not_mergeable is not None:
            why = adaptation.method.not_mergeable or "it acts beside the weights."
            raise PeftError(f"{adaptation.name} cannot be written as changes of weights: {why}")
        deltas.setdefault(paths[id(module)], []).append(graft)
    found: dict[str, Change] = {}
    for path in dict.fromkeys([*deltas, *(key.rpartition(".")[0] for key in originals)]):
        module, grafts = model.get_submodule(path), deltas.get(path, [])
        weight, bias = (None if p is None else p.detach() for p in map(module._parameters.get, ("weight", "bias")))
        if weight is None:
            raise PeftError(f"{adaptation.name} trains {path}, which has no weight that a LoRA file could name.")
        before, bias_before = originals.get(f"{path}.weight", weight), originals.get(f"{path}.bias", bias)
        after = changed_weight(weight, grafts)
        bias_after = changed_bias(bias, grafts, weight)
        change = Change(before, after, bias_before, bias_after)
        if not (torch.equal(before, after) and _same(bias_before, bias_after)):
            found[path] = change
    return found


def _originals(model: nn.Module, adaptation: Any) -> dict[str, Tensor]:
    """Stock weights that the adaptation trains, as they were."""
    if adaptation.trained and not adaptation.method.keeps_originals:
        raise PeftError(
            f"{adaptation.name} keeps no copy of the weights that it overwrote, so nobody can say what it changed: "
            "`diffusion_peft merge` writes the whole pipeline."
        )
    odd = [key for key in adaptation.trained if key.rpartition(".")[2] not in ("weight", "bias")]
    if odd:
        raise PeftError(f"{adaptation.name} trains {odd[0]}, which no LoRA file can name.")
    parameters = dict(model.named_parameters())
    return {key: adaptation.originals[key].to(parameters[key].device) for key in adaptation.trained}


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def differences(changes: dict[str, Change]) -> dict[str, Layer]:
    """Each change written whole.

    Raises:
        PeftError: a shift where the stock layer has no bias.
    """
    layers = {}
    for path, change in changes.items():
        tensors = {"C": (change.after.float() - change.before.float()).cpu()}
        if not _same(change.bias_before, change.bias_after):
            if change.bias_before is None or change.bias_after is None:
                raise PeftError(f"{path} has no bias that could take the shift: write the run as it is, or --as lora.")
            tensors["c"] = (change.bias_after.float() - change.bias_before.float()).cpu()
        layers[path] = Layer("full", tensors)
    return layers


@dataclass(frozen=True)
class LowRankForm:
    """Changes as LoRA layers.

    Args:
        left_out: ‖what the layers lack‖ / ‖the change‖, Frobenius norms over all weights.
        skipped: modules whose change LoRA cannot say: of biases and of norms.
    """

    layers: dict[str, Layer]
    left_out: float
    skipped: tuple[str, ...]


def low_rank(changes: dict[str, Change], share: float = 1.0) -> LowRankForm:
    """Each change of a matrix or convolution as the LoRA layer nearest to it, by its singular values.

    Args:
        share: keep the largest singular values up to this share of their sum; 1 keeps all that are not zero in float32.

    Raises:
        PeftError: a share out of its range, or changes of which LoRA can say none.
    """
    layers: dict[str, Layer] = {}
    skipped, kept_square, total_square = [], 0.0, 0.0
    for path, change in changes.items():
        dense = (change.after.double() - change.before.double()).cpu()
        if not _same(change.bias_before, change.bias_after) or dense.dim() < 2:
            skipped.append(path)
        if dense.dim() < 2 or not dense.any():
            continue
        layers[path], values = nearest(dense, share)
        kept_square += float(values[: layers[path].rank].square().sum())
        total_square += float(values.square().sum())
    if not layers:
        raise PeftError("this adaptation changes no matrix, so LoRA cannot say it: train it first, or write --as diff.")
    return LowRankForm(layers, max(0.0, 1 - kept_square / total_square) ** 0.5, tuple(skipped))


def nearest(change: Tensor, share: float) -> tuple[Layer, Tensor]:
    """The LoRA layer of a dense change's largest singular values, up to `share` of their sum; and all of them, falling.

    Raises:
        PeftError: a share out of its range.
    """
    if not 0 < share <= 1:
        raise PeftError(
            f"--compress {share:g} must be above 0 and at most 1: the share of the singular values to keep."
        )
    left, values, right = torch.linalg.svd(change.double().flatten(1), full_matrices=False)
    alive = int((values > values[0] * torch.finfo(torch.float32).eps).sum())
    rank = max(1, min(alive, int((values.cumsum(0) < share * values.sum()).sum()) + 1))
    root = values[:rank].sqrt()
    factors = {"A": (root[:, None] * right[:rank]).float(), "B": (left[:, :rank] * root).float()}
    return Layer("lora", factors), values
