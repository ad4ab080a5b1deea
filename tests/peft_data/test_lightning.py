"""Lightning saves, restores and shards the loader through its own protocols."""

import warnings
from pathlib import Path

import pytest
import torch
from peft_data.batches import Batch, Batches

from tests.peft_data.test_batches import pictures

L = pytest.importorskip("lightning")
EPOCHS, STEPS = 3, 3


class Model(L.LightningModule):
    """Notes which pictures each step sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(12, 1)
        self.seen: list[tuple[int, list[int]]] = []

    def training_step(self, batch: Batch, _: int) -> torch.Tensor:
        self.seen.append((self.current_epoch, batch.indices.tolist()))
        return self.layer(batch.images.flatten(1).float() / 255).mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class SaveAt(L.Callback):
    """Saves after a step, or after an epoch, and stops there."""

    def __init__(self, path: Path, step: int | None = None, epoch: int | None = None) -> None:
        self.path, self.step, self.epoch = path, step, epoch

    def save(self, trainer) -> None:
        trainer.save_checkpoint(self.path)
        raise KeyError("killed")

    def on_train_batch_end(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            self.save(trainer)

    def on_train_epoch_end(self, trainer, *_) -> None:
        if trainer.current_epoch == self.epoch:
            self.save(trainer)


def fit(tmp_path, *callbacks, ckpt_path=None) -> tuple[Model, list]:
    model = Model()
    trainer = L.Trainer(
        max_epochs=EPOCHS, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks), default_root_dir=tmp_path,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            trainer.fit(model, Batches(pictures(), 4, seed=7), ckpt_path=ckpt_path)
        except KeyError:
            pass
    return model, model.seen


def test_each_epoch_has_its_order(tmp_path) -> None:
    want = Batches(pictures(), 4, seed=7)
    _, seen = fit(tmp_path)
    assert seen == [(epoch, batch.indices.tolist()) for epoch in range(EPOCHS) for batch in want]


@pytest.mark.parametrize("stop", [{"step": step} for step in range(1, 9)] + [{"epoch": epoch} for epoch in range(2)])
def test_a_killed_run_goes_on_with_the_same_batches(tmp_path, stop) -> None:
    _, want = fit(tmp_path)
    _, before = fit(tmp_path, SaveAt(tmp_path / "a.ckpt", **stop))
    _, after = fit(tmp_path, ckpt_path=tmp_path / "a.ckpt")
    assert len(before) == stop.get("step", STEPS * (stop.get("epoch", 0) + 1))
    assert before + after == want


def test_it_trains_and_evaluates(tmp_path) -> None:
    class Both(Model):
        def validation_step(self, batch: Batch, _: int) -> None:
            self.checked = [*getattr(self, "checked", []), *batch.indices.tolist()]

    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path, num_sanity_val_steps=0,
    )  # fmt: skip
    model = Both()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(model, Batches(pictures(), 4), Batches(pictures(7), 3, shuffle=False))
    assert model.checked == list(range(7)) and len(model.seen) == STEPS
