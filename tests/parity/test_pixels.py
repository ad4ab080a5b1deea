"""Pixel prompts against tensors that the authors' code gave, in float64 with random weights.

Each golden file names repository, commit and files. EVP (UCSC-VLAA/EVP 96b7131): two updates of the prompt and the logits around
them, 224 pixels; its gradient's norm is over the whole picture, `share.*` is the frame's part of it. ILM-VP (OPTML-Group/ILM-VP
84ca042): logits, gradient and label mapping, on a classifier and on CLIP. DAM-VP (shikiw/DAM-VP dec5821): prototypes, routes,
prompted pictures and gradients; of its meta-training two steps on two data sets, three turns each.
"""

from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_peft import OpenVocabulary
from peft_core import adapt, lifecycle
from peft_core.lifecycle import Losses, Progress
from peft_core.parts.tokens.label_map import matched
from peft_core.parts.tokens.pixels import frame_of
from tests.parity import clip_model
from tests.parity.golden import golden, values
from vision_peft.dam_vp import Reptile, Seen
from vision_peft.methods.dam_vp import centres_of

MEAN, STD = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)


def vit(size: int, patch: int) -> nn.Module:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=size, patch_size=patch, embed_dim=16, num_heads=2, depth=1, num_classes=5
    )
    model = model.double().eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(values(key, parameter.shape))
    return model


def normal(pictures: Tensor) -> Tensor:
    return (pictures - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def adapted(model: nn.Module, name: str, **settings: Any) -> tuple[nn.Module, Any]:
    """The model in float64, and the method that changed it."""
    adapt(model, name, mean=MEAN, std=STD, **settings)
    return model.double(), model.__dict__["_peft_record"].adaptations[name].method


def whole(frame: Any, pixels: Tensor) -> Tensor:
    """Pixels 3 n on a canvas 3 H W."""
    return (
        torch.zeros(3, *frame.size, dtype=pixels.dtype)
        .flatten(1)
        .index_copy(1, frame.index, pixels)
        .view(3, *frame.size)
    )


def test_evps_updates_are_the_authors() -> None:
    there = golden("pixels_evp")
    model, method = adapted(vit(224, 56), "evp", train_head=False)
    frame = frame_of(model, method)
    x = normal(torch.sigmoid(values("x", (2, 3, 224, 224))))
    torch.testing.assert_close(model(x), there["logits"], rtol=1e-5, atol=1e-5)
    (group,) = lifecycle.parameter_groups(model, 1e-3, 1e-4)
    assert (group["lr"], group["weight_decay"]) == (0.0, 0.0)
    for step in (0, 1):  # the second of two steps has half the rate
        model.train().zero_grad()
        F.cross_entropy(model(x), torch.tensor([3, 1])).backward()
        lifecycle.after_step(model, Progress(step + 1, 2))
        moved = whole(frame, frame.prompt.detach()).flatten()[::997]
        torch.testing.assert_close(moved, there[f"after.{step}"], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model.eval()(x), there[f"logits.{step}"], rtol=1e-5, atol=1e-5)


def test_ilm_vps_picture_and_mapping_are_the_authors() -> None:
    there = golden("pixels_ilm_vp")
    torch.testing.assert_close(matched(there["counts"]), there["pairs"])
    model, method = adapted(vit(8, 4), "ilm_vp", border=2, classes=3)
    frame = frame_of(model, method)
    with torch.no_grad():
        frame.prompt.copy_(values("program", (3, 8, 8)).flatten(1)[:, frame.index])
    x, labels = normal(torch.sigmoid(values("x", (12, 3, 8, 8)))), torch.arange(12) % 3
    batches = [(x[:6], labels[:6]), (x[6:], labels[6:])]
    lifecycle.prepare(model, Losses(lambda b: F.cross_entropy(model(b[0]), b[1]), batches, labels=lambda b: b[1]))
    assert method._mapped(model).sources.tolist() == there["sequence"].tolist()
    logits = model(x)
    torch.testing.assert_close(logits, there["logits"], rtol=1e-5, atol=1e-6)
    F.cross_entropy(logits, labels).backward()
    torch.testing.assert_close(whole(frame, frame.prompt.grad), there["grad.program"], rtol=1e-5, atol=1e-8)


def test_dam_vps_clusters_and_prompts_are_the_authors() -> None:
    there = golden("pixels_dam_vp")
    model = vit(8, 4)
    with torch.no_grad():
        model.norm.weight.mul_(there["scale"])
        model.norm.bias.mul_(there["scale"])
    model, method = adapted(model, "dam_vp", border=2, train_head=False)
    frame = frame_of(model, method)
    x = values("x", (12, 3, 8, 8)) * torch.tensor([1.0] * 6 + [8.0] * 6)[:, None, None, None]
    lifecycle.prepare(model, Losses(lambda batch: model(batch).sum(), [x[:6], x[6:]]))
    torch.testing.assert_close(frame.centres, there["centres"], rtol=1e-5, atol=1e-5)
    names = {"up": (1, 3, 2, 8), "down": (1, 3, 2, 8), "left": (1, 3, 4, 2), "right": (1, 3, 4, 2)}
    frames = []
    for k in range(len(frame.centres)):
        up, down, left, right = (values(f"{k}.pad_{name}", shape)[0] for name, shape in names.items())
        middle = torch.cat([left, torch.zeros(3, 4, 4, dtype=torch.float64), right], 2)
        frames.append(torch.cat([up, middle, down], 1).flatten(1)[:, frame.index])
    with torch.no_grad():
        frame.prompts.copy_(torch.stack(frames))
    torch.testing.assert_close(frame.before(x), there["picture"], rtol=1e-6, atol=1e-6)
    logits = model(x)
    torch.testing.assert_close(logits, there["logits"], rtol=1e-5, atol=1e-5)
    F.cross_entropy(logits, torch.arange(12) % 5).backward()
    for own, theirs in zip(frame.prompts.grad, there["grad"], strict=True):
        parts = [
            part.reshape(shape)[0] for part, shape in zip(theirs.split([48, 48, 24, 24]), names.values(), strict=True)
        ]
        up, down, left, right = parts
        middle = torch.cat([left, torch.zeros(3, 4, 4, dtype=torch.float64), right], 2)
        torch.testing.assert_close(whole(frame, own), torch.cat([up, middle, down], 1), rtol=1e-5, atol=1e-8)


def test_ilm_vp_on_clip_is_the_authors() -> None:
    there = golden("pixels_ilm_vp_clip")
    texts = ["This is a photo of a {}.", "a bad photo of a {}.", "a photo of many {}."]
    clip: Any = OpenVocabulary(clip_model.model(), "ilm_vp_clip", clip_model.NAMES, template=texts)
    learner = clip.learner.double()
    with torch.no_grad():
        program = 0.5 * clip_model.noise("program", 3, 32, 32)
        learner.frame.prompt.copy_(program.flatten(1)[:, learner.frame.index])
    x, labels = clip_model.noise("many images", 20, 3, 32, 32), torch.arange(20) % 5
    learner.prepare(clip.loss(x[rows], labels[rows]) for rows in (slice(10), slice(10, 20)))
    assert learner.sources.tolist() == there["sequence"].tolist() and learner.counts is None
    torch.testing.assert_close(clip(x[:4]), there["logits"], rtol=1e-5, atol=1e-5)
    loss = clip.loss(x[:4], labels[:4])
    torch.testing.assert_close(loss, there["loss"][0], rtol=1e-5, atol=1e-6)
    loss.backward()
    framed = torch.ones(3, 32, 32, dtype=torch.float64)
    framed[:, 4:-4, 4:-4] = 0
    assert not (there["grad"] * (1 - framed)).any()
    torch.testing.assert_close(whole(learner.frame, learner.frame.prompt.grad), there["grad"], rtol=1e-5, atol=1e-7)


def test_dam_vps_meta_training_is_the_authors() -> None:
    there, sets, batches = golden("pixels_dam_vp_meta"), [], []
    model = vit(8, 4)
    model.reset_classifier(0)  # type: ignore[operator]
    with torch.no_grad():
        for tensor in (model.norm.weight, model.norm.bias):  # type: ignore[union-attr]
            tensor.mul_(there["scale"])  # type: ignore[operator]
    model, method = adapted(model, "dam_vp", border=2)
    frame = frame_of(model, method)
    frame.prompts.data[0] = there["prompt"].flatten(1)[:, frame.index]
    each = torch.tensor([1.0] * 6 + [8.0] * 6)[:, None, None, None]
    for number, classes in enumerate((3, 5)):
        x = values(f"{number} x", (12, 3, 8, 8)) * 4 * each
        centres, head = centres_of(frame.features(x), 10.0), nn.Linear(16, classes).double()
        torch.testing.assert_close(centres, there[f"centres.{number}"], rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            head.weight.copy_(values(f"{number}.head.weight", (classes, 16)) / there["scale"])
            head.bias.copy_(values(f"{number}.head.bias", (classes,)))
        sets.append(Seen(head, centres))
        batches.append((x, torch.arange(12) % classes))
    reptile = Reptile(model, frame, sets, turns=3, step=0.5, head_lr=0.1, weight_decay=1e-2)
    for step in (1, 2):
        loss = reptile.update(batches, there[f"lr.{step}"].item())
        torch.testing.assert_close(whole(frame, reptile.prompt), there[f"prompt.{step}"], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(loss, there[f"loss.{step}"].item(), rtol=1e-5, atol=1e-7)
    for number, seen in enumerate(sets):
        torch.testing.assert_close(seen.head.weight, there[f"head.{number}"], rtol=1e-5, atol=1e-7)
