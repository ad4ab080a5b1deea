"""Selective methods beside Hugging Face PEFT and their authors' code."""

import peft
import torch
from torch import nn

from peft_core import adapt
from tests.tiny import vit


def test_shira_equals_peft():
    """Same mask from the same seed; outputs, gradients and one training step."""
    torch.manual_seed(0)
    ours, theirs = vit()().double(), vit()().double()
    theirs.load_state_dict(ours.state_dict())
    adapt(ours, "shira", rank=2, seed=3, targets=("fc1", "fc2"), train_head=False)
    config = peft.ShiraConfig(r=2, random_seed=3, target_modules=["fc1", "fc2"])
    theirs = peft.get_peft_model(theirs, config).double()  # type: ignore[arg-type]
    own = {k.split(".peft.")[0]: p for k, p in ours.named_parameters() if p.requires_grad}
    other = {
        k.split(".shira_weight")[0].removeprefix("base_model.model."): p
        for k, p in theirs.named_parameters()
        if p.requires_grad
    }
    assert own.keys() == other.keys()
    optimizers = [torch.optim.AdamW(each.values(), lr=1e-2) for each in (own, other)]
    x, y = torch.randn(4, 3, 32, 32).double(), torch.arange(4)
    for _ in range(2):
        losses = [nn.functional.cross_entropy(model(x), y) for model in (ours, theirs)]
        torch.testing.assert_close(*losses, rtol=1e-9, atol=1e-9)
        for loss in losses:
            loss.backward()
        for key, parameter in own.items():
            torch.testing.assert_close(parameter.grad, other[key].grad, rtol=1e-8, atol=1e-9)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-9, atol=1e-9)
