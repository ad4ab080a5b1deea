"""Several adapters made one LoRA file, against peft's `add_weighted_adapter`."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from diffusion_peft.commands.merge import merge_
from diffusion_peft.files.joining import How, joined
from diffusion_peft.files.layers import Layer
from diffusion_peft.formats import export_adapter, import_adapter
from peft_core import adapt
from peft_core.errors import PeftError
from tests.diffusion_peft.pipelines import stable_diffusion, train

WEIGHTS = [0.8, -0.5]
THEIRS = {"cat": "cat", "svd": "svd", "ties": "ties_svd", "magnitude": "magnitude_prune_svd", "dare": "dare_linear_svd",
          "dare_ties": "dare_ties_svd"}  # fmt: skip


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(6, 8).double(), nn.Linear(8, 5).double()


def by_peft(how: str, rank: int | None) -> tuple[list[dict[str, Layer]], dict[str, Tensor]]:
    """Two adapters of peft's, as layers; and the change that it makes of both."""
    torch.manual_seed(0)
    both = (("first", 2, ["one", "other"]), ("second", 3, ["one"]))
    model: Any = None
    for name, own, targets in both:
        config = peft.LoraConfig(r=own, lora_alpha=2 * own, target_modules=targets, init_lora_weights=False)
        if model is None:
            model = peft.get_peft_model(Layers(), config, adapter_name=name, autocast_adapter_dtype=False)
        else:
            model.add_adapter(name, config)
    sets: list[dict[str, Layer]] = []
    modules = {path: model.base_model.model.get_submodule(path) for path in ("one", "other")}
    for name, _, targets in both:
        sets.append({
            path: Layer("lora", {"A": modules[path].lora_A[name].weight.data.clone(),
                                 "B": modules[path].lora_B[name].weight.data.clone()}, modules[path].scaling[name])
            for path in targets
        })  # fmt: skip
    model.add_weighted_adapter(
        ["first", "second"],
        WEIGHTS,
        "both",
        combination_type=THEIRS[how],
        svd_rank=rank,
        density=0.6,
        majority_sign_method="total",
    )
    return sets, {path: module.get_delta_weight("both") for path, module in modules.items()}


@pytest.mark.parametrize("how", THEIRS)
@pytest.mark.parametrize("rank", [None, 2])
def test_as_peft_makes_them(how: How, rank: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def bernoulli(share: Tensor, generator: Any = None) -> Tensor:
        """By the number of the draw: peft draws more from torch's own state before."""
        drawn.append(len(drawn))
        return (torch.rand(share.shape, generator=torch.Generator().manual_seed(drawn[-1])) < share).to(share)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    if how == "cat" and rank is not None:
        with pytest.raises(PeftError, match="--how cat keeps all ranks"):
            joined([{}], [1.0], how, rank, 0.6, 7)
        return
    sets, wanted = by_peft(how, rank or (3 if how != "cat" else None))
    drawn.clear()
    found = joined(sets, WEIGHTS, how, rank or (3 if how != "cat" else None), 0.6, 7)
    for path, layer in found.items():
        change = layer.tensors["B"] @ layer.tensors["A"] * layer.scale
        torch.testing.assert_close(change, wanted[path], rtol=1e-9, atol=1e-9)


def test_two_files_in_one(sd15: str, tmp_path: Path) -> None:
    """Side by side they change the UNet as both do."""
    files = []
    for number, (method, settings) in enumerate((("lora", {"rank": 2, "alpha": 3.0}), ("lokr", {"rank": 2}))):
        unet: Any = stable_diffusion("sd15").unet
        adapt(unet, method, **settings)
        train(unet, seed=number)
        form = "diffusers_lora" if method == "lora" else "kohya"
        files.append(export_adapter(unet, None, tmp_path / f"{method}.safetensors", form))
    given = {"adapter": [f"{files[0]}:0.8", f"{files[1]}:-0.5"], "base": sd15}
    for form in ("diffusers_lora", "kohya"):
        whole = merge_(into=str(tmp_path / f"{form}-both.safetensors"), format=form, **given)
        one: Any = stable_diffusion("sd15").unet
        import_adapter(one, None, whole)
        two: Any = stable_diffusion("sd15").unet
        for number, (file, scale) in enumerate(zip(files, (0.8, -0.5), strict=True)):
            import_adapter(two, None, file, name=f"n{number}", scale=scale)
        x, words = torch.randn(1, 4, 8, 8), torch.randn(1, 7, 24)
        with torch.no_grad():
            torch.testing.assert_close(one(x, 5, words).sample, two(x, 5, words).sample, rtol=1e-4, atol=1e-4)
    small = merge_(into=str(tmp_path / "small"), how="ties", rank=1, **given)
    assert {min(value.shape[:2]) for value in load_file(small).values()} == {1}
    for wrong, words in (
        ({"into": "x", "out": "y"}, "give merge one of them"), ({}, "needs --out"),
        ({"out": "y", "how": "ties"}, "--how is of --into, one LoRA file, and --out adds all adapters up: leave --how out"),
        ({"out": "y", "rank": 2}, "--rank is of --into"), ({"into": "x", "density": 0.1}, "--density is of --how ties, dare"),
        ({"into": "x", "overlap": 1.0}, "are what --how zip learns its coefficients on"),
        ({"into": "x", "how": "b_lora", "rank": 2}, "keeps the ranks of both halves"),
    ):  # fmt: skip
        with pytest.raises(PeftError, match=words):
            merge_(**wrong, **given)
