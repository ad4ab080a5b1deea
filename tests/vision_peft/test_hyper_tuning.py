"""A hypermodel by its equations, the start that it gives, and the command that trains one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core import PeftError, adapt, lifecycle
from peft_core.lifecycle import Losses
from peft_core.methods.reparameterized.hyper_tuning import HyperTuning, places_of
from peft_core.parts.hypermodel import Hypermodel, read_hypermodel
from peft_core.testing import perturb
from tests.tiny import timm_model, vit
from vision_peft.commands import main
from vision_peft.hyper_tuning import Tasks

LABELS = torch.tensor([3, 0, 3, 1, 0, 3])


def pictures(seed: int = 0) -> Tensor:
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def losses(model: nn.Module) -> Losses:
    batches = [(pictures()[:4], LABELS[:4]), (pictures()[4:], LABELS[4:])]
    return Losses(lambda b: F.cross_entropy(model(b[0]), b[1]), batches, labels=lambda b: b[1])


def written(folder: Path, **changes: Any) -> str:
    """A hypermodel with weights of chance, for LoRA on q and v of the tiny ViT's."""
    model, method = adapted(**{key: changes.pop(key) for key in ("targets",) if key in changes})
    shapes = {name: (len(change.B), change.A.shape[1]) for name, change in places_of(model, method).items()}
    torch.manual_seed(1)
    made = Hypermodel(shapes, **{"features": 48, "up": 6, "down": 4, "width": 16, **changes})
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    made.write(folder)
    return str(folder)


def adapted(build: Any = None, **settings: Any) -> tuple[nn.Module, HyperTuning]:
    torch.manual_seed(0)
    method = HyperTuning(rank=2, **settings)
    return adapt((build or vit())(), method), method


def test_a_hypermodel_by_its_equation() -> None:
    torch.manual_seed(0)
    made, features = Hypermodel({"a": (7, 5), "b": (3, 9)}, 8, rank=2, up=4, down=3, width=16), torch.randn(6, 8)
    for place in range(2):
        outer, inner = getattr(made, f"U{place}"), getattr(made, f"D{place}")
        torch.testing.assert_close(outer.t() @ outer, torch.eye(outer.shape[1]))
        torch.testing.assert_close(inner @ inner.t(), torch.eye(len(inner)))
    down, up = made(features, LABELS)["a"]
    assert (up @ down).abs().max() < 1e-2 < down.abs().max()  # near zero at first, and d is not
    perturb(made)
    w = made.start
    mean = torch.stack([features[LABELS == c].mean(0) for c in (0, 1, 3)])
    spread = torch.stack([features[LABELS == c].std(0, unbiased=False) for c in (0, 1, 3)])
    seen = made.reads(torch.cat((mean, spread), 1))[None]
    for _ in range(2):
        h = (made.enters(w) + made.position)[None]
        for layer in made.decoder:
            h = layer(h, seen)
        w = w + made.leaves(h)[0]
    found = made(features, LABELS)
    torch.testing.assert_close(found["b"][1], made.U1 @ w[1, :8].view(4, 2)[:3], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found["b"][0], w[1, 8:].view(2, 3) @ made.D1, atol=1e-5, rtol=1e-4)
    order = torch.randperm(6)
    again = made(features[order], 10 - LABELS[order])  # neither pictures' order nor classes' names count
    torch.testing.assert_close(again["a"], found["a"], atol=1e-5, rtol=1e-4)
    weight, bias, classes = made.nearest_mean(features, LABELS)
    distance = -made.temperature.exp() * torch.cdist(features, mean).square()
    told = (F.linear(features, weight, bias) - distance).std(1)
    assert classes.tolist() == [0, 1, 3] and told.max() < 1e-4


def test_training_starts_from_what_is_predicted(tmp_path: Path) -> None:
    source = written(tmp_path / "made", rank=1)
    model, method = adapted(source=source, alpha=3.0)
    frozen = adapted()[0].eval().forward_head
    model.eval()
    with torch.no_grad():
        features = frozen(model.forward_features(pictures()), pre_logits=True)
    stock_row = model.head.weight[2].clone()
    lifecycle.prepare(model, losses(model))
    expected = read_hypermodel(source)(features, LABELS)
    for name, change in places_of(model, method).items():
        down, up = expected[name]
        torch.testing.assert_close(change.scale * change.B @ change.A, up @ down)
        assert not change.B[:, 1:].any() and change.A[1:].any() and up.any()
    with torch.no_grad():
        moved = model.forward_head(model.forward_features(pictures()), pre_logits=True)
        means = torch.stack([moved[LABELS == c].mean(0) for c in (0, 1, 3)])
        logits = model(pictures())[:, [0, 1, 3]]
    near = -read_hypermodel(source).temperature.exp() * torch.cdist(moved, means).square()
    torch.testing.assert_close(logits.softmax(1), near.softmax(1))
    assert torch.equal(model.head.weight[2], stock_row) and not torch.equal(moved, features)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert method.as_trained(model).source is None


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    source = written(tmp_path / "made")
    for settings, words in (
        ({"source": str(tmp_path)}, "holds no hypermodel: make one with"),
        ({"source": source, "targets": ("proj",)}, "take its backbone, targets and blocks"),
        ({"source": written(tmp_path / "wide", rank=3)}, "predicts rank 3"),
        ({"source": written(tmp_path / "other", features=12)}, "features of another width"),
    ):
        model, _ = adapted(**settings)
        with pytest.raises(PeftError, match=words):
            lifecycle.prepare(model, losses(model))
    model, _ = adapted(source=source)
    with pytest.raises(PeftError, match="pictures with classes"):
        lifecycle.prepare(model, [model(pictures()).sum()])
    with pytest.raises(PeftError, match="has 2 heads"):
        adapted(timm_model("deit_tiny_distilled_patch16_224"), source=source)
    (Path(source) / "hypermodel.json").write_text('{"places": {"a": 3}}', encoding="utf-8")
    with pytest.raises(PeftError, match="cannot be read"):
        read_hypermodel(source)


def test_tasks_are_a_function_of_seed_and_step() -> None:
    images = torch.arange(40, dtype=torch.uint8)[:, None, None, None].expand(40, 3, 2, 2)
    labels = torch.arange(40) % 4
    tasks = Tasks([(images, labels), (images[:3], labels[:3])], ways=3, shots=2, queries=3, seed=0)
    assert len(tasks) == 1  # the other has too few pictures of each class
    task, again, next_one = tasks.draw(5), tasks.draw(5), tasks.draw(6)
    assert all(torch.equal(a, b) for a, b in zip(task, again, strict=True)) and not torch.equal(task[0], next_one[0])
    shown, asked = task.shown[:, 0, 0, 0], task.asked[:, 0, 0, 0]
    assert task.named.tolist() == [0, 0, 1, 1, 2, 2] and not set(shown.tolist()) & set(asked.tolist())
    for own in range(3):  # one class of the data each, in both parts
        kinds = torch.cat((shown[task.named == own], asked[task.truth == own])) % 4
        assert len(kinds) == 5 and len(kinds.unique()) == 1


def test_the_command_makes_what_fit_starts_from(tmp_path: Path, small_data: str, tiny_backbone: str) -> None:
    out, run = tmp_path / "hyper", tmp_path / "run"
    backbone = ["--backbone", tiny_backbone]
    few = ["--steps", "3", "--scored", "2", "--shots", "2", "--queries", "2", "--width", "65"]
    assert main(["hyper_tuning", "--data", small_data, "--out", str(out), *backbone, *few]) == 0
    card = json.loads((out / "hypermodel.json").read_text(encoding="utf-8"))
    assert card["evaluated_on"] == "val" and set(card["accuracy"]) == {"frozen", "predicted"}
    flags = ["--method", "hyper_tuning", "--method.source", str(out), "--batch_size", "20", "--eval_on", "val"]
    trainer = ["--trainer.max_epochs", "1", "--trainer.accelerator", "cpu", "--recipe", "digits"]
    assert main(["fit", "--data", small_data, "--out", str(run), *backbone, *flags, *trainer]) == 0
    adapter = json.loads((run / "adapter" / "adapter.json").read_text(encoding="utf-8"))
    assert adapter["adaptations"][0]["settings"].get("source") is None
