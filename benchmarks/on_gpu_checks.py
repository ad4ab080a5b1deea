"""Gradients and merges of every method on a GPU, held against the CPU's on tiny models, in float32 and in bf16.

Gradients in float32 equal the CPU's, tensor by tensor; under bf16 autocast they are the float32 ones but for rounding. A merge
keeps the outputs, of a float32 and of a bf16 base. Families whose library is not installed are left out.

python -m benchmarks.on_gpu_checks --device cuda
python -m benchmarks.on_gpu_checks --quick            # one setting a method, on a ViT alone
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.measuring import autocast, has_bf16, machine, options
from peft_core import NotMergeable, PeftError, adapt, list_methods, merge
from peft_core.method import Method
from peft_core.registry import find_method
from peft_core.testing import Family, perturb, usual_families

FLOAT32, BF16 = 1e-3, 0.35
"""Largest difference of gradients, as a share of their norm; on a CPU bf16 gives 0.01 to 0.03, and 0.25 where a tiny network
of norms amplifies its rounding (ControlNeXt's branch of 8 channels)."""
MERGED, MERGED_BF16 = 1e-5, 0.05
"""Largest difference of outputs, as a share of their norm."""
NOTHING = 1e-3
"""Below this share of all gradients' norm a tensor's is rounding."""


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--methods", nargs="*", help="all where nothing is said")
    args = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = (
        False  # convolutions would round as they do in training, far above what is asked here
    )
    bf16 = has_bf16(args.device)
    print(machine(args.device) + ("" if bf16 else "; it has no bf16 units: float32 alone"))
    start, checked, wrong = time.perf_counter(), 0, []
    known = {"vit": usual_families()["vit"]} if args.quick else families()
    print(f"families: {', '.join(known)}", flush=True)
    for method in examples(args.methods or list(list_methods()), args.quick):
        for name, family in known.items():
            if "file" in method.needs and name != "unet":  # its layers are named as a UNet's are
                continue
            try:
                faults = list(differences(family, method, args.device, bf16))
            except PeftError:  # it does not go with this family
                continue
            except RuntimeError as error:
                faults = [f"{type(error).__name__}: {str(error).splitlines()[0]}"]
            checked += 1
            wrong += [f"{method} on {name}: {fault}" for fault in faults]
            for line in wrong[len(wrong) - len(faults) :]:
                print(line, flush=True)
    print(f"{checked} pairs of method and model in {time.perf_counter() - start:.0f} s: {len(wrong)} differences")
    if wrong or not checked:
        raise SystemExit(1)


def families() -> dict[str, Family]:
    """Those of the tests where all libraries are there, else the usual two."""
    try:
        from tests.tiny import MODELS
    except ModuleNotFoundError as missing:
        print(f"{missing.name} is not installed: families that need it are left out")
        return usual_families()
    return {name: MODELS[name] for name in ("vit", "eva", "clip", "clip_text_model", "unet")}


def examples(names: list[str], quick: bool) -> Iterator[Method]:
    for name in names:
        try:
            found = list(find_method(name).examples())
        except PeftError as error:  # a library of its file is missing
            print(f"left out: {error}")
            continue
        yield from found[:1] if quick else found


def differences(family: Family, method: Method, device: torch.device, bf16: bool) -> Iterator[str]:
    """What differs on the device, in words.

    Raises:
        PeftError: the method does not go with the family.
    """
    model = adapt(family.model(), method).eval()  # dropout would draw other masks on the device
    perturb(model)
    there = on(family, device)
    twin = copy.deepcopy(model).to(device)
    expected = gradients(family, model)
    least = NOTHING * norm(expected)
    found = gradients(there, twin)
    if found.keys() != expected.keys():
        yield f"gradients reach other parameters: {sorted(found.keys() ^ expected.keys())[:3]}"
        return
    for key, gradient in expected.items():
        share = float((found[key] - gradient).norm() / (gradient.norm() + least))
        if not share <= FLOAT32:
            yield f"the gradient of {key} differs by {share:.1e} of its norm in float32"
    if bf16 and expected:
        cast = gradients(there, twin, bf16=True)
        share = norm({key: cast[key] - gradient for key, gradient in expected.items()}) / norm(expected)
        if not share <= BF16:
            yield f"gradients under bf16 autocast differ by {share:.1e} of their norm"
    yield from merge_difference(there, twin, MERGED, "float32")
    if bf16:
        low = adapt(family.model().bfloat16(), method).eval()
        perturb(low)
        yield from merge_difference(on(family, device, torch.bfloat16), low.to(device), MERGED_BF16, "bf16")


def merge_difference(family: Family, model: nn.Module, allowed: float, precision: str) -> Iterator[str]:
    with torch.no_grad():
        y = family(model).float()
        try:
            merge(model)
        except NotMergeable:
            return
        share = float((family(model).float() - y).norm() / y.norm())
    if not share <= allowed:
        yield f"merging moves the outputs by {share:.1e} of their norm in {precision}"


def gradients(family: Family, model: nn.Module, bf16: bool = False) -> dict[str, Tensor]:
    """Of everything that trains, on the CPU."""
    model.zero_grad(set_to_none=True)
    device = next(model.parameters()).device
    with autocast(device, bf16):
        y = family(model).float()
    if y.requires_grad:
        (y * torch.linspace(-1, 1, y.numel(), device=device).view_as(y)).sum().backward()
    return {key: p.grad.detach().float().cpu() for key, p in model.named_parameters() if p.grad is not None}


def norm(tensors: dict[str, Tensor]) -> float:
    return sum(float(tensor.norm()) ** 2 for tensor in tensors.values()) ** 0.5


def on(family: Family, device: torch.device, dtype: torch.dtype | None = None) -> Family:
    """The family with its batch on a device."""

    def batch() -> dict[str, Any]:
        return {
            key: value.to(device, dtype if value.is_floating_point() else None) for key, value in family.batch().items()
        }

    return replace(family, batch=batch)


if __name__ == "__main__":
    main()
