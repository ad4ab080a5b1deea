"""Adapters against tensors that the authors' own code gave, in float64: what is chosen, forward, gradients and one training step.

zhaohengyuan1/SCT 01e8f1e: `ChannelAdapter` in a ViT with drop path, on channels that `getSalientChannels` finds in two batches;
Shwai-He/SparseAdapter b190084: `Adapter_Layer` without a norm behind the steps of a ViT, its pruners on two batches;
ChaosCodes/ProPETL 1c08f19: `AdapterSubnet`, its scores transposed, on one adapter behind every MLP of a ViT; drop path.
"""

import re

import pytest
import torch
import torch.nn.functional as F

from peft_core import adapt, lifecycle
from peft_core.attach import record_of
from peft_core.grafts.branch import Branch
from peft_core.lifecycle import Losses, own_grafts
from peft_core.methods.adapters.sparse_adapter import SparseMatrix
from tests.parity.golden import golden, values
from tests.parity.test_official import LABELS, PICTURES, check, vit
from tests.parity.test_official_vectors import fill

BATCHES = [(PICTURES, LABELS), (values("y.weight", (3, 3, 8, 8)), torch.tensor([0, 2, 0]))]


def test_a_step_of_sct_is_the_authors() -> None:
    model = adapt(vit(drop_path_rate=0.5), "sct", channels=5).eval()
    names = fill(model, lambda key: re.sub(r"(blocks\.\d).*\.(\w+)", r"\1.sct.\2", key))
    lifecycle.prepare(model, Losses(lambda batch: model(batch[0]).sum(), BATCHES, labels=lambda batch: batch[1]))
    method = record_of(model).adaptations["sct"].method
    for index, graft in enumerate(own_grafts(model, method, Branch)):
        torch.testing.assert_close(graft.change.channels, golden("sct")[f"channels.{index}"])
    check("sct", model, names, lambda: model(PICTURES), LABELS, lambda: None)


@pytest.mark.parametrize("pruner", ["magnitude", "snip", "grasp", "synflow"])
def test_a_step_of_sparse_adapter_is_the_authors(pruner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is the same whoever chose; there gradients of what is not kept are zero."""
    model, there = (
        adapt(vit(drop_path_rate=0.5), "sparse_adapter", bottleneck=3, share=0.4, pruner=pruner),
        golden("sparse_adapter"),
    )
    paths = {module: path for path, module in model.named_modules()}

    def name_there(key: str) -> str:
        kind = "attn" if "drop_path1" in key else "mlp"
        return re.sub(r"(blocks\.\d).*change\.(.*)", rf"\1.adapter_{kind}.\2", key).replace("_bias", ".bias")

    def draw(matrix: SparseMatrix, generator: torch.Generator) -> None:
        matrix.dense = values(f"{name_there(paths[matrix])}.weight", matrix.shape).requires_grad_()

    monkeypatch.setattr(SparseMatrix, "draw", draw)
    names = fill(model, lambda key: name_there(key).replace("values", "weight"))
    lifecycle.prepare(model.eval(), Losses(lambda batch: F.cross_entropy(model(batch[0]), batch[1]), BATCHES))
    for matrix, path in paths.items():
        if isinstance(matrix, SparseMatrix):
            mask = there[f"{pruner}.{name_there(path)}"]
            torch.testing.assert_close(matrix.indices.long(), mask.flatten().nonzero().flatten())
    if pruner != "snip":
        return
    kept = {names[f"{path}.values"]: m.indices for m, path in paths.items() if isinstance(m, SparseMatrix)}
    given = {key: value.flatten()[kept[key[5:]]] if key[5:] in kept else value for key, value in there.items()}
    monkeypatch.setattr(
        "tests.parity.test_official.golden", lambda case: {k: v for k, v in given.items() if "snip." not in k}
    )
    check("sparse_adapter", model, names, lambda: model(PICTURES), LABELS, lambda: None)


def test_a_step_of_pro_petl_is_the_authors() -> None:
    model = adapt(vit(drop_path_rate=0.5), "pro_petl", bottleneck=3, share=0.4)

    def name_there(key: str) -> str:
        shared = re.sub(r".*shared_adapter_16\.value", "adapter", key)
        return re.sub(r"(blocks\.\d).*\.(down|up)\.scores", r"\1.mask.\2_scores", shared)

    names = fill(model, name_there)
    check("pro_petl", model, names, lambda: model(PICTURES), LABELS, lambda: None)
    y = model(PICTURES)
    lifecycle.finish(model)
    torch.testing.assert_close(model(PICTURES), y, rtol=0, atol=0)
