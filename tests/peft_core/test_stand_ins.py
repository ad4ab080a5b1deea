"""Other numbers in place of stock weights: LoftQ's later turns, LQ-LoRA, and what may stand beside them."""

import copy
from typing import Any

import pytest
import torch
from peft.utils.loftq_utils import _low_rank_decomposition

from peft_core import PeftError, adapt, dequantise, lifecycle, load_adapter, merge, quantise, remove, save_adapter
from peft_core.grafts.stand_in import StandIn
from peft_core.kernels.levels import bits_a_number, from_levels, to_levels
from peft_core.kernels.quantised import Packed, dense, packed_of
from peft_core.parts.quantised import residuals
from peft_core.parts.quantised.packed import rounded
from peft_core.testing import perturb
from peft_core.testing.families import Losses
from tests.parity.golden import golden, values
from tests.tiny import Tiny, pictures, vit

VIT = Tiny(vit(embed_dim=64, num_heads=2, depth=1), pictures())
PACKED = Tiny(lambda: quantise(VIT.model(), "int4", keep=True), pictures())


def decomposed(**settings: Any) -> Any:
    model = adapt(VIT.model(), "lq_lora", **{"rank": 2, "turns": 2, "block_sizes": (16,)} | settings)
    lifecycle.prepare(model, Losses(model, VIT))
    return model


def test_loftq_goes_on_by_turns_with_pefts_decomposition() -> None:
    model: Any = adapt(PACKED.model(), "loftq", rank=4, alpha=4.0, steps=3, targets=("proj",))
    whole = VIT.model().blocks[0].attn.proj.weight.detach()  # type: ignore[union-attr,index]
    change = torch.zeros_like(whole)
    for _ in range(3):
        codes, scale, zero = rounded(whole - change, 4, 64)
        q = (scale.unsqueeze(-1) * (codes.view(64, -1, 64) - zero.unsqueeze(-1))).view_as(whole)
        theirs = _low_rank_decomposition(whole - q, 4)
        change = theirs["L"] @ theirs["R"]
    grafts = model.blocks[0].attn.proj.peft.loftq
    torch.testing.assert_close(dense(grafts.proj_stock.held(), torch.float32), q, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(grafts.proj.B @ grafts.proj.A, change, rtol=1e-4, atol=1e-6)
    once = _low_rank_decomposition(whole - dense(packed_of(model.blocks[0].attn.proj), torch.float32), 4)
    stock = dense(packed_of(model.blocks[0].attn.proj), torch.float32)
    assert (whole - q - change).norm() < (whole - stock - once["L"] @ once["R"]).norm()


def test_a_file_holds_what_stands_in_and_merging_writes_it(tmp_path: Any) -> None:
    model: Any = adapt(PACKED.model().eval(), "loftq", rank=2, steps=2, targets=("q", "v", "fc1"))
    perturb(model)
    y = PACKED(model).detach()
    other: Any = adapt(PACKED.model().eval(), "loftq", rank=2, steps=4, targets=("q", "v", "fc1"))
    assert not torch.equal(PACKED(other), y)
    again = load_adapter(PACKED.model().eval(), save_adapter(model, tmp_path / "a"))
    assert torch.equal(PACKED(again), y)
    torch.testing.assert_close(PACKED(merge(dequantise(copy.deepcopy(model)))), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("case", "form", "turns", "weighed"), [
    ("a", (3, 8, 16, 16), 1, False), ("b", (2, 4, 32, 8), 3, False), ("c", (4, 8, 16, 48), 3, True),
])  # fmt: skip
def test_lq_lora_decomposes_as_the_authors_code(
    case: str, form: Any, turns: int, weighed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exact(weight: torch.Tensor, rank: int) -> Any:
        u, s, v = torch.linalg.svd(weight, full_matrices=False)
        return u[:, :rank], s[:rank], v[:rank]

    theirs, weight = golden("lq_lora"), values("weight", (24, 32)).float()
    monkeypatch.setattr(residuals, "_leading", exact)
    importance = values("fisher", (24, 32)).float().square() + 0.01 if weighed else None
    make = lambda rest: Packed("levels", (24, 32), to_levels(rest, *form), form)  # noqa: E731
    packed, down, up, error = residuals.from_above(weight, 4, make, turns, importance)
    torch.testing.assert_close(dense(packed, torch.float32), theirs[f"{case}.values"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(up @ down, theirs[f"{case}.low_rank"], rtol=1e-4, atol=1e-5)
    rest = (weight - theirs[f"{case}.values"] - theirs[f"{case}.low_rank"]).square()
    assert error == pytest.approx(float((rest if importance is None else rest * importance).sum()), rel=1e-3)
    held = sum(t.numel() * t.element_size() for t in packed.tensors) * 8 / weight.numel()
    assert held == pytest.approx(
        bits_a_number(*form) + 32 / weight.numel(), abs=0.1
    )  # the least scale; bytes filled up


def test_bits_are_given_out_as_the_authors_programme_does() -> None:
    costs, sizes = values("costs", (6, 8)).float().square(), values("sizes", (6, 8)).float().abs() + 1
    assert residuals.cheapest(costs, sizes, 12.0) == golden("lq_lora")["choice"].tolist()
    costs[0, 2] = float("inf")
    assert residuals.cheapest(costs, sizes, 12.0)[0] != 2


def test_lq_lora_keeps_its_budget_and_uses_it() -> None:
    taken, errors = [], []
    for budget in (3.1, 4.0):
        model = decomposed(budget=budget, targets=("attn", "mlp"))
        stands = [graft for graft in model.modules() if isinstance(graft, StandIn)]
        numbers = [stand.held().shape[0] * stand.held().shape[1] for stand in stands]  # type: ignore[union-attr]
        bits = [bits_a_number(*stand.numbers[3:]) for stand in stands]  # type: ignore[arg-type]
        taken.append(sum(n * b for n, b in zip(numbers, bits, strict=True)) / sum(numbers))
        errors.append((VIT(model.eval()) - VIT(VIT.model().eval())).norm())
    assert 2.6 < taken[0] <= 3.1 < taken[1] <= 4.0 and errors[1] < errors[0]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_levels_come_back_from_bytes(bits: int) -> None:
    torch.manual_seed(bits)
    weight = torch.randn(6, 32)
    weight[0] = 0
    form = (bits, 3, 16, 4)
    found = from_levels(to_levels(weight, *form), form, (6, 32), torch.float32)
    assert torch.equal(found[0], weight[0]) and torch.isfinite(found).all()
    assert (found - weight).norm() / weight.norm() < {2: 0.6, 3: 0.35, 4: 0.25, 8: 0.15}[bits]


def test_what_stands_in_comes_first_and_its_weight_does_not_train() -> None:
    model = decomposed(targets=("fc1",))
    y = VIT(model.eval()).detach()
    both = adapt(copy.deepcopy(model), "lora", rank=2, targets=("fc1",)).eval()
    torch.testing.assert_close(VIT(both), y)
    perturb(both)
    y = VIT(both).detach()
    torch.testing.assert_close(VIT(merge(both)), y, rtol=1e-4, atol=1e-5)
    with pytest.raises(PeftError, match="lora changes already: adapt with lq_lora first"):
        adapt(adapt(VIT.model(), "lora", rank=2, targets=("fc1",)), "lq_lora", targets=("fc1",))
    with pytest.raises(PeftError, match="lq_lora changes already"):
        adapt(model, "lq_lora", name="second", targets=("fc1",))
    with pytest.raises(PeftError, match=r"fc1.weight is to train, and lq_lora puts other numbers in its place"):
        adapt(model, "full")
    with pytest.raises(PeftError, match=r"scale is to train, and loftq puts"):
        adapt(adapt(PACKED.model(), "loftq", rank=2, steps=2, targets=("fc1",)), "peqa", targets=("fc1",))
    assert torch.equal(VIT(remove(model)), VIT(VIT.model().eval()))


def test_bad_input_of_lq_lora() -> None:
    with pytest.raises(PeftError, match="budget of 2 bits a number is below 2.51"):
        decomposed(budget=2.0)
    with pytest.raises(PeftError, match="2, 3, 4 or 8 bits, not 5"):
        decomposed(bits=(4, 5))
    with pytest.raises(PeftError, match="blocks of 48 do not divide it"):
        decomposed(block_sizes=(48,))
    with pytest.raises(PeftError, match=r"call peft_core.lifecycle.prepare"):
        lifecycle.after_step(adapt(VIT.model(), "lq_lora", rank=2), 0.1)
    with pytest.raises(PeftError, match="these are quantised: set samples to 0"):
        model = adapt(PACKED.model(), "lq_lora", rank=2, samples=2)
        lifecycle.prepare(model, Losses(model, VIT))
    with pytest.raises(PeftError, match="unknown form"):
        StandIn(None).fit({"form": torch.tensor([9, 1, 1, 2])})
