"""LoRA's relatives that change while they train, against Hugging Face PEFT 0.21, LyCORIS 4.1 and their formulas."""

from typing import Any

import pytest
import torch
from lycoris.modules.dylora import DyLoraModule
from peft import AdaLoraConfig, get_peft_model
from torch import Tensor, nn

from peft_core import PeftError, adapt, lifecycle, load_adapter, merge, save_adapter
from peft_core.lifecycle import Progress
from peft_core.method import Method
from peft_core.methods.reparameterized.capaboost import Masked
from peft_core.methods.reparameterized.dylora import Truncated
from peft_core.parts.chance import chance
from peft_core.parts.lowrank import LowRank
from peft_core.registry import make_method
from peft_core.testing import loss
from tests.parity.test_lora_family import pictures
from tests.tiny import MODELS

STEPS = 8


class Loop:
    """A training loop of one's own, which may be stopped and go on."""

    def __init__(self, method: Method, steps: int = STEPS):
        torch.manual_seed(0)
        self.model = adapt(MODELS["vit"].model().train(), method)
        self.optimiser = torch.optim.AdamW(lifecycle.parameter_groups(self.model, 1e-2))
        self.step, self.steps, self.x = 0, steps, pictures()[0][:4]

    def run(self, until: int) -> "Loop":
        while self.step < until:
            torch.manual_seed(self.step)
            self.optimiser.zero_grad()
            (loss(self.model(self.x)) + lifecycle.penalty(self.model)).backward()
            lifecycle.before_step(self.model)
            self.optimiser.step()
            self.step += 1
            lifecycle.after_step(self.model, Progress(self.step, self.steps))
        return self

    def kept(self) -> dict[str, Any]:
        return {
            "model": {key: value.clone() for key, value in self.model.state_dict().items()},
            "methods": lifecycle.state(self.model), "optimiser": self.optimiser.state_dict(), "step": self.step,
        }  # fmt: skip

    def go_on(self, kept: dict[str, Any]) -> "Loop":
        self.model.load_state_dict(kept["model"])
        lifecycle.load_state(self.model, kept["methods"])
        self.optimiser.load_state_dict(kept["optimiser"])
        self.step = kept["step"]
        return self


SETTINGS: dict[str, dict[str, Any]] = {
    "adalora": {"rank": 3, "target_rank": 1, "t_init": 0.2, "t_final": 0.25, "every": 2},
    "sora": {"rank": 4, "xi": 0.05},
    "dylora": {"rank": 4},
    "periodic_lora": {"rank": 2, "every": 2, "momentum": 0.0},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_stopped_training_goes_on_as_if_it_had_not(name: str, tmp_path):
    method = make_method(name, **SETTINGS[name])
    whole = Loop(method).run(STEPS)
    torch.save(Loop(method).run(3).kept(), tmp_path / "kept")
    resumed = Loop(method).go_on(torch.load(tmp_path / "kept", weights_only=True)).run(STEPS)
    state = resumed.model.state_dict()
    assert state.keys() == whole.model.state_dict().keys()
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize("name", SETTINGS)
def test_what_training_chose_is_saved_with_it(name: str, tmp_path):
    model = Loop(make_method(name, **SETTINGS[name])).run(STEPS).model
    before = MODELS["vit"](model.eval())
    lifecycle.finish(model)
    y = MODELS["vit"](model)
    torch.testing.assert_close(y, before, rtol=1e-5, atol=1e-5)
    save_adapter(model, tmp_path)
    again = load_adapter(MODELS["vit"].model().eval(), tmp_path)
    assert torch.equal(MODELS["vit"](again), y)
    save_adapter(again, tmp_path)
    assert torch.equal(MODELS["vit"](load_adapter(MODELS["vit"].model().eval(), tmp_path)), y)
    torch.testing.assert_close(MODELS["vit"](merge(again.train()).eval()), y, rtol=1e-4, atol=1e-5)


def changes(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, LowRank)]


# ---- AdaLoRA -------------------------------------------------------------------------------------------------------

TARGETS = ["attn.proj", "mlp.fc1"]


def test_adalora_allocates_as_in_peft():
    """Change, penalty, importance and every choice of the budget, step by step with the same weights and gradients."""
    config: Any = AdaLoraConfig(
        init_r=3, target_r=1, tinit=2, tfinal=3, deltaT=2, total_step=12, lora_alpha=3, target_modules=TARGETS,
        orth_reg_weight=0.5,
    )  # fmt: skip
    net: Any = get_peft_model(MODELS["vit"].model().eval(), config)
    settings = dict(rank=3, target_rank=1, alpha=3.0, t_init=2 / 12, t_final=3 / 12, every=2, targets=("proj", "fc1"))
    model = adapt(MODELS["vit"].model().eval(), "adalora", **settings, train_head=False)
    pairs = []
    for i in range(3):
        for end in TARGETS:
            peer = net.get_submodule(f"base_model.model.blocks.{i}.{end}")
            ours: Any = model.get_submodule(f"blocks.{i}.{end}.peft.adalora.{end.partition('.')[2]}")
            theirs = {"A": peer.lora_A["default"], "B": peer.lora_B["default"], "E": peer.lora_E["default"]}
            nn.init.normal_(theirs["E"], std=0.1)
            for name, tensor in theirs.items():
                getattr(ours, name).data.copy_(tensor.detach().view_as(getattr(ours, name)))
            pairs += [(getattr(ours, name), tensor) for name, tensor in theirs.items()]
    optimisers = [torch.optim.SGD([pair[at] for pair in pairs], lr=0.05) for at in (0, 1)]
    x = pictures()[0][:4]
    for step in range(1, 13):
        for who, optimiser in ((model, optimisers[0]), (net, optimisers[1])):
            optimiser.zero_grad()
            y = who(x)
            if who is net:
                norms = [(p @ p.t() if "lora_A" in n else p.t() @ p) - torch.eye(3) for n, p in net.named_parameters()
                         if "lora_A" in n or "lora_B" in n]  # fmt: skip
                extra: Tensor = 0.5 * torch.stack([n.norm() for n in norms]).mean()
            else:
                extra = lifecycle.penalty(model)  # type: ignore[assignment]
            (loss(y) + extra).backward()
            optimiser.step()
        net.base_model.update_and_allocate(step)
        lifecycle.after_step(model, Progress(step, 12))
        for ours, peer in pairs:
            torch.testing.assert_close(ours, peer.view_as(ours), rtol=1e-4, atol=1e-6)
            if ours.dim() == 1:
                assert torch.equal(ours == 0, peer.flatten() == 0), step
    left = sum(int((ours != 0).sum()) for ours, _ in pairs if ours.dim() == 1)
    assert left == 6
    lifecycle.finish(model)
    assert max(len(change.A) for change in changes(model)) <= 3 and sum(len(c.A) for c in changes(model)) <= 6 + 5


def test_adalora_says_what_it_needs():
    with pytest.raises(PeftError, match="must stay below 1"):
        make_method("adalora", t_init=0.5, t_final=0.5)
    with pytest.raises(PeftError, match="above its rank 4"):
        make_method("adalora", rank=4)
    model = adapt(MODELS["vit"].model(), "adalora", rank=3, target_rank=2)
    with pytest.raises(PeftError, match=r"Progress\(step, steps\)"):
        lifecycle.after_step(model, 0.5)
    with pytest.raises(PeftError, match="no place of this model"):
        adapt(MODELS["vit"].model(), "adalora", ranks={"blocks.9.attn.qkv.q": 1})
    with pytest.raises(PeftError, match="must be 0 to 12"):
        adapt(MODELS["vit"].model(), "adalora", ranks={"blocks.0.attn.qkv.q": 13})


# ---- DyLoRA --------------------------------------------------------------------------------------------------------


def test_dylora_as_in_lycoris():
    """Their block size 1 with `rank` b has b + 1 components, the last of which learns, at alpha/(b + 1)."""
    torch.manual_seed(0)
    stock = nn.Linear(16, 24)
    theirs: Any = DyLoraModule("x", stock, lora_dim=4, alpha=3.0, block_size=1)
    change: Any = Truncated(stock.weight, None, 4, 3.0 / 4, used=4, below=False)
    for i in range(4):
        nn.init.normal_(theirs.up_list[i])
        change.A.data[i], change.B.data[:, i] = theirs.down_list[i].detach()[0], theirs.up_list[i].detach()[:, 0]
    for b in (1, 3, 4):
        change.draw((b - 0.5) / 4)
        g = torch.randn(24, 16)
        ours, peer = change(stock.weight.detach()) - stock.weight.detach(), theirs.get_diff_weight(rank=b - 1)[0]
        torch.testing.assert_close(ours, peer, rtol=1e-4, atol=1e-5)
        down, up = torch.autograd.grad(change(stock.weight.detach()), (change.A, change.B), g)
        others = torch.autograd.grad(peer, (theirs.down_list[b - 1], theirs.up_list[b - 1]), g)
        torch.testing.assert_close(down[b - 1 : b], others[0], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(up[:, b - 1 : b], others[1], rtol=1e-4, atol=1e-4)
        assert down.any(1).sum() == up.any(0).sum() == 1
        change.used = b
        torch.testing.assert_close(
            change.eval()(stock.weight.detach()) - stock.weight.detach(), peer, rtol=1e-4, atol=1e-5
        )
        change.train()


def test_dylora_draws_every_rank_alike():
    change: Any = Truncated(torch.zeros(4, 4), None, 4, 1.0, used=4, below=True)
    drawn = []
    for step in range(400):
        change.draw(torch.rand((), generator=chance(0, step)).item())
        drawn.append(int(change.drawn))
    assert set(drawn) == {1, 2, 3, 4} and min(drawn.count(b) for b in (1, 2, 3, 4)) > 70
    with pytest.raises(PeftError, match="rank_at_use 5, above the rank 4"):
        adapt(MODELS["vit"].model(), "dylora", rank=4, rank_at_use=5)


# ---- SoRA, CapaBoost, PeriodicLoRA ----------------------------------------------------------------------------------


def test_sora_steps_as_its_code():
    """TsinghuaC3I/SoRA@c275ac2: what is above ξ shrinks by it, then what is below it is zero."""
    model = adapt(MODELS["vit"].model(), "sora", rank=5, xi=0.2)
    gates = [change.g for change in changes(model)]
    value = torch.tensor([0.1, -0.3, 0.5, -0.5, 0.2])
    for g in gates:
        g.data.copy_(value)
    assert lifecycle.penalty(model).item() == pytest.approx(10 * value.abs().mean().item())  # type: ignore[union-attr]
    lifecycle.after_step(model, 0.5)
    for g in gates:
        torch.testing.assert_close(g.data, torch.tensor([0, 0, 0.3, -0.3, 0.2]))
    groups = lifecycle.parameter_groups(model, 1e-3, 0.1)
    assert {id(p) for p in groups[0]["params"]} == {id(g) for g in gates} and groups[0]["weight_decay"] == 0
    lifecycle.finish(model)
    assert {len(change.A) for change in changes(model)} == {3}


def test_capaboost_sums_masked_pairs():
    torch.manual_seed(0)
    weight = torch.randn(24, 16, dtype=torch.float64)
    change: Any = Masked(weight, None, 3, 1.5, 0.0, 2, 0.5, chance(0, 0))
    nn.init.normal_(change.B)
    expected = weight + 1.5 * sum(
        (change.B * up) @ (change.A * down) for up, down in zip(change.up_masks, change.down_masks, strict=True)
    )
    torch.testing.assert_close(change(weight), expected)
    assert change.down_masks.flatten(1).sum(1).tolist() == [24, 24]
    assert torch.linalg.matrix_rank(change(weight) - weight) == 6
    again: Any = Masked(weight, None, 3, 1.5, 0.0, 2, 0.5, chance(0, 0))
    assert torch.equal(again.up_masks, change.up_masks)
