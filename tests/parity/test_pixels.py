"""Pixel prompts against tensors that the authors' code gave, in float64 with random weights.

Each golden file names repository, commit and files. EVP (UCSC-VLAA/EVP 96b7131): two updates of the prompt and the logits around
them, 224 pixels; its gradient's norm is over the whole picture, `share.*` is the frame's part of it. ILM-VP (OPTML-Group/ILM-VP
84ca042): logits, gradient and label mapping. DAM-VP (shikiw/DAM-VP dec5821): prototypes, routes, prompted pictures and gradients.
"""

from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core import adapt, lifecycle
from peft_core.lifecycle import Losses, Progress
from peft_core.parts.tokens.pixels import frame_of
from tests.parity.golden import golden, values
from vision_peft.methods.ilm_vp import matched

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
