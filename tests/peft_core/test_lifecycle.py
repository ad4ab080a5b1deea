"""What methods may want besides their forward: in a plain loop, and in Lightning with a run that is stopped and goes on."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

from peft_core import PeftError, adapt, lifecycle
from peft_core.attach import grafts_named
from peft_core.jobs.runs.learning import Learning
from peft_core.jobs.runs.training import quiet
from peft_core.lifecycle import Losses
from peft_core.method import Method, Plan
from peft_core.parts.lowrank import LowRank
from tests.tiny import MODELS, vit


@dataclass(frozen=True, kw_only=True)
class Everything(Method):
    """LoRA whose A is masked by sensitivity, whose B has its own rate, whose Bs are drawn to zero and shrunk, then doubled."""

    rank: int = 2

    def install(self, plan: Plan) -> None:
        for place, rank in plan.places(("q", "v"), self.rank):
            plan.change_weight(place, LowRank(plan.stock(place), place.rows, rank, 1.0))

    def prepare(self, model: nn.Module, losses: Iterable[Tensor]) -> None:
        for seen, loss in enumerate(losses, start=1):
            loss.backward()
            if seen == 2:
                break
        kept = lifecycle.memory(model, self)
        kept["seen"] = seen
        kept["masks"] = [
            (g.B.grad.abs() > g.B.grad.abs().median()).float() for g in lifecycle.own_grafts(model, self, LowRank)
        ]

    def parameter_groups(self, model: nn.Module, lr: float, weight_decay: float) -> Iterator[dict[str, Any]]:
        yield {"params": [graft.B for graft in lifecycle.own_grafts(model, self)], "lr": 16 * lr}

    def penalty(self, model: nn.Module) -> Tensor:
        return 0.1 * sum(graft.B.square().sum() for graft in lifecycle.own_grafts(model, self))

    def after_step(self, model: nn.Module, progress: float) -> None:
        kept = lifecycle.memory(model, self)
        kept["steps"] = kept.get("steps", 0) + 1
        kept["gradient"] = kept.get("gradient", 0.0) + sum(
            g.B.grad.norm().item() for g in lifecycle.own_grafts(model, self)
        )
        for graft, mask in zip(lifecycle.own_grafts(model, self), kept["masks"], strict=True):
            graft.B *= mask * (1 - progress / 2)

    def finish(self, model: nn.Module) -> None:
        for graft in lifecycle.own_grafts(model, self):
            graft.B *= 2


def pictures() -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    return [(torch.randn(2, 3, 32, 32, generator=g), torch.randint(5, (2,), generator=g)) for _ in range(3)]


def test_a_plain_loop_makes_five_calls():
    torch.manual_seed(0)
    model, calls = adapt(vit(depth=1)(), Everything()), []
    batches = pictures()

    def losses() -> Iterator[Tensor]:
        for x, y in batches:
            calls.append(len(calls))
            yield nn.functional.cross_entropy(model(x), y)

    lifecycle.prepare(model, losses())
    assert len(calls) == 2 and all(p.grad is None for p in model.parameters())  # the third was never computed
    groups = lifecycle.parameter_groups(model, 1e-3, 0.1)
    assert [group["lr"] for group in groups] == [16e-3, 1e-3, 1e-3] and [g["weight_decay"] for g in groups] == [
        0.1,
        0.1,
        0.0,
    ]
    grouped = [id(p) for group in groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    optimiser = torch.optim.AdamW(groups)
    for step, (x, y) in enumerate(batches):
        extra = lifecycle.penalty(model)
        assert (extra > 0) == (step > 0)
        (nn.functional.cross_entropy(model(x), y) + extra).backward()
        optimiser.step()
        lifecycle.after_step(model, lifecycle.Progress(step + 1, len(batches)))
        optimiser.zero_grad()
    (method,) = [a.method for a in model.__dict__["_peft_record"].adaptations.values()]
    kept, before = lifecycle.memory(model, method), [g.B.clone() for g in lifecycle.own_grafts(model, method)]
    assert kept["steps"] == 3 and kept["gradient"] > 0 and kept["seen"] == 2
    assert all((b[mask == 0] == 0).all() and b.any() for b, mask in zip(before, kept["masks"], strict=True))
    lifecycle.finish(model)
    assert all(torch.equal(g.B, 2 * b) for g, b in zip(lifecycle.own_grafts(model, method), before, strict=True))


def test_methods_without_wishes_cost_nothing():
    model = adapt(MODELS["vit"].model(), "lora")
    assert lifecycle.penalty(model) == 0.0 and lifecycle.state(model) == {} and not lifecycle.wants(model, "prepare")
    lifecycle.prepare(model, iter(lambda: pytest.fail("no method asked for a loss"), None))
    assert [len(g["params"]) for g in lifecycle.parameter_groups(model, 1e-3)] == [13, 1]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    lifecycle.after_step(model, 0.5)
    lifecycle.finish(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    with pytest.raises(PeftError, match="no progress"):
        lifecycle.Progress(4, 3)


def test_a_parameter_stands_in_one_group():
    @dataclass(frozen=True, kw_only=True)
    class Twice(Everything):
        def parameter_groups(self, model: nn.Module, lr: float, weight_decay: float) -> Iterator[dict[str, Any]]:
            yield from super().parameter_groups(model, lr, weight_decay)
            yield from super().parameter_groups(model, lr, weight_decay)

    with pytest.raises(PeftError, match="two groups"):
        lifecycle.parameter_groups(adapt(vit(depth=1)(), Twice()), 1e-3)


class Fits(Learning):
    def __init__(self, model: nn.Module) -> None:
        super().__init__(steps=6, lr=1e-2)
        self.model = model

    def adapted(self) -> dict[str, nn.Module]:
        return {"model": self.model}

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        torch.manual_seed(self.trainer.global_step)

    def training_step(self, batch: Any, index: int) -> Tensor:
        return self.count(nn.functional.cross_entropy(self.model(batch[0]), batch[1]))

    def on_train_batch_end(self, out: Any, batch: Any, index: int) -> None:
        self.note(index)


class Classes(Fits):
    def labels_of(self, batch: Any) -> Tensor:
        return batch[1]


@dataclass(frozen=True, kw_only=True)
class EachEpoch(Everything):
    """It adds up the classes that it is shown before each epoch."""

    prepares_each_epoch: ClassVar[bool] = True

    def prepare(self, model: nn.Module, losses: Iterable[Tensor]) -> None:
        kept, pairs = lifecycle.memory(model, self), lifecycle.labelled(losses)
        assert pairs is not None
        kept["masks"] = [torch.ones_like(g.B) for g in lifecycle.own_grafts(model, self, LowRank)]
        kept["shown"] = [*kept.get("shown", []), sum(int(labels.sum()) for _, labels in pairs)]


def fit(
    epochs: int,
    checkpoint: str | None = None,
    make: type[Fits] = Fits,
    method: Callable[[], Method] = Everything,
    **flags: Any,
) -> tuple[Fits, Trainer]:
    torch.manual_seed(0)
    module = make(adapt(vit(depth=1)(), method()))
    with quiet():
        trainer = Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, **flags,
        )  # fmt: skip
        trainer.fit(
            module, torch.utils.data.DataLoader(pictures(), batch_size=None), ckpt_path=checkpoint, weights_only=True
        )
    return module, trainer


def test_lightning_makes_the_calls_and_a_stopped_run_goes_on_to_the_same_bytes(tmp_path):
    whole, _ = fit(2)
    first, trainer = fit(1)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    second, _ = fit(2, str(tmp_path / "last.ckpt"))
    for module in (whole, second):
        module.finish()
    (method,) = [a.method for a in whole.model.__dict__["_peft_record"].adaptations.values()]
    assert lifecycle.memory(whole.model, method)["steps"] == 6 and lifecycle.memory(whole.model, method)["seen"] == 2
    states = [module.model.state_dict() for module in (whole, second)]
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    assert any(value.any() for key, value in states[0].items() if key.endswith(".B"))
    assert (
        lifecycle.state(whole.model)["everything"]["gradient"]
        == lifecycle.state(second.model)["everything"]["gradient"]
    )


def test_what_is_prepared_each_epoch_is_prepared_once_each_however_often_a_run_is_stopped(tmp_path):
    classes: dict[str, Any] = {"make": Classes, "method": EachEpoch}
    expected, at = [sum(int(y.sum()) for _, y in pictures())] * 2, str(tmp_path / "last.ckpt")
    for flags in ({}, {"max_steps": 1}, {"max_steps": 4}):  # at an epoch's end, in the first, in the second
        first, trainer = fit(1 if not flags else 2, **classes, **flags)
        trainer.save_checkpoint(at)
        second, _ = fit(2, at, **classes)
        assert lifecycle.state(second.model)["each_epoch"]["shown"] == expected
    assert lifecycle.labelled(iter(())) is None and not lifecycle.wants(fit(1)[0].model, "prepare", again=True)


def test_two_that_choose_from_the_data_prepare_one_after_the_other():
    """What has not chosen yet does nothing while the other looks at the data."""
    x = torch.randn(2, 3, 32, 32)
    for names in (("fish_mask", "sct"), ("sct", "fish_mask")):
        model = vit(depth=1)()
        for name in names:
            adapt(model, name, **({"channels": 4} if name == "sct" else {}))
        lifecycle.prepare(model, Losses(lambda batch, model=model: model(batch).square().sum(), [x]))
        model(x).sum().backward()
        assert all(graft.enabled for name in names for _, _, graft in grafts_named(model, name))


def test_losses_that_come_once_are_not_gone_through_twice():
    x = torch.randn(2, 3, 32, 32)
    model = adapt(vit(depth=1)(), "s3pet", search_epochs=2, parameters=480)
    with pytest.raises(PeftError, match=r"these come once: give lifecycle.Losses\(loss, batches\)"):
        lifecycle.prepare(model, (model(x).sum() for _ in range(2)))
    with pytest.raises(PeftError, match="s3pet chooses by the losses that prepare is given, and was given none"):
        lifecycle.prepare(adapt(vit(depth=1)(), "s3pet", parameters=480), [])
