"""A training that stops and goes on from its checkpoint ends with the bytes of one that did not, for each method that
remembers, draws, prunes or averages on the way: every method with calls of its own is found by itself."""

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from peft_core import adapt, lifecycle, list_methods
from peft_core.adapter_file import fit_grafts
from peft_core.lifecycle import Losses, Progress
from peft_core.method import Method
from peft_core.registry import find_method
from peft_core.stock import adapter_state
from peft_core.testing import lacks, loss
from tests.tiny import Tiny, pictures, vit

FAMILY = Tiny(vit(depth=2), pictures())
STEPS, EPOCH = 6, 3
STOPS = (2, 4)
"""In the first epoch of three steps and in the second."""


def methods() -> Iterator[Method]:
    for example in (example for name in list_methods() for example in find_method(name).examples()):
        calls = ("prepare", "before_step", "after_step")
        if any(example.wants(call) for call in calls) and lacks(example, FAMILY.anatomy) is None:
            settings: Any = {"every": 2} if hasattr(example, "every") else {}  # as few steps would not see it otherwise
            yield replace(example, **settings)


def of_a_batch(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return loss(FAMILY.out(model(**batch)))


class Training:
    """As the programs train: `prepare` before the first epoch, or before each, and from a checkpoint not again."""

    def __init__(self, method: Method, checkpoint: bytes | None = None) -> None:
        self.model: Any = adapt(FAMILY.model().train(), method)
        batches = [FAMILY.batch(), {key: value.flip(0) for key, value in FAMILY.batch().items()}]
        self.losses = Losses(
            lambda batch: of_a_batch(self.model, batch), batches, labels=lambda batch: torch.arange(len(batch["x"]))
        )
        self.step, self.prepared = 0, -1
        kept = None if checkpoint is None else torch.load(io.BytesIO(checkpoint), weights_only=True)
        if kept is not None:
            fit_grafts(self.model, kept["model"])
            assert not self.model.load_state_dict(kept["model"], strict=False).unexpected_keys
            lifecycle.load_state(self.model, kept["methods"])
            self.step, self.prepared = kept["step"], kept["prepared"]
        else:
            self.prepare()
        self.optimiser = torch.optim.AdamW(lifecycle.parameter_groups(self.model, 1e-2))
        if kept is not None:
            self.optimiser.load_state_dict(kept["optimiser"])

    def prepare(self) -> None:
        epoch = self.step // EPOCH
        if self.prepared != epoch and lifecycle.wants(self.model, "prepare", again=self.step > 0):
            torch.manual_seed(100 + epoch)
            lifecycle.prepare(self.model, self.losses, again=self.step > 0)
        self.prepared = epoch

    def run(self, until: int) -> "Training":
        while self.step < until:
            self.prepare()
            torch.manual_seed(self.step)
            self.optimiser.zero_grad()
            (of_a_batch(self.model, FAMILY.batch()) + lifecycle.penalty(self.model)).backward()
            lifecycle.before_step(self.model)
            self.optimiser.step()
            self.step += 1
            lifecycle.after_step(self.model, Progress(self.step, STEPS), self.losses, self.optimiser)
        return self

    def checkpoint(self) -> bytes:
        buffer = io.BytesIO()
        kept = {"model": adapter_state(self.model), "methods": lifecycle.state(self.model), "step": self.step,
                "optimiser": self.optimiser.state_dict(), "prepared": self.prepared}  # fmt: skip
        torch.save(kept, buffer)
        return buffer.getvalue()

    def end(self) -> dict[str, Tensor]:
        self.run(STEPS)
        lifecycle.finish(self.model)
        return self.model.state_dict()


@pytest.mark.parametrize("method", [*methods()], ids=lambda method: method.name)
def test_it_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(method: Method) -> None:
    whole = Training(method)
    checkpoints = [whole.run(step).checkpoint() for step in STOPS]
    expected = whole.end()
    for step, checkpoint in zip(STOPS, checkpoints, strict=True):
        found = Training(method, checkpoint).end()
        assert found.keys() == expected.keys()
        different = [key for key, value in expected.items() if not torch.equal(value, found[key])]
        assert not different, f"stopped after step {step}: {different[:3]}"
