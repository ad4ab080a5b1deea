"""Selective methods beside Hugging Face PEFT and their authors' code."""

import peft
import torch
from torch import nn

from peft_core import adapt
from peft_core.lifecycle import penalty
from peft_core.parts.chance import uniform
from peft_core.parts.selection.contrast import supervised_contrastive
from peft_core.parts.selection.gated import Gated
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


def test_supervised_contrastive_loss_equals_the_authors():
    """`SupConLoss` of FightingFighting/GPS@72e0c31 (utils/loss_utils.py), run on these features, gave this number."""
    features = torch.arange(48, dtype=torch.float64).view(4, 2, 6).sin()
    loss = supervised_contrastive(features, torch.tensor([0, 1, 0, 2]))
    torch.testing.assert_close(loss.item(), 3.4385669593581922, rtol=1e-12, atol=0)


def test_hard_concrete_gates_equal_their_formula():
    """dguo98/DiffPruning@085fa7d (examples/run_glue_diffpruning.py): z and dz/dα, written out there, with l, r = −1.5, 1.5."""
    weight = torch.zeros(6, 4, dtype=torch.float64)
    graft = Gated(weight, None, (6, 4), 3)
    graft.open(structured=False)
    with torch.no_grad():
        graft.alpha.copy_(torch.linspace(-6, 6, 24).view(6, 4))
        graft.w.fill_(1.0)
    graft.draw(5)
    state = torch.get_rng_state()
    z = graft(weight)
    assert torch.equal(torch.get_rng_state(), state)
    (gradient,) = torch.autograd.grad(z.sum(), graft.alpha)
    u = uniform(torch.tensor(5), torch.Size((6, 4)), torch.float64).clamp(0.0001, 0.9999)
    s = torch.sigmoid(u.log() - (1 - u).log() + graft.alpha.detach())
    stretched = s * 3 - 1.5
    torch.testing.assert_close(z.detach(), stretched.clamp(0, 1), rtol=1e-12, atol=1e-12)
    inside = (stretched > 0) & (stretched < 1)
    assert inside.any() and not inside.all()
    torch.testing.assert_close(gradient, inside * 3 * s * (1 - s), rtol=1e-12, atol=1e-12)
    model = adapt(vit(depth=1)(), "diff_pruning", structured=True, targets=("fc1",), penalty_weight=2.0)
    # Σ σ(α) over w, b and one gate for each of the two, all at 5
    expected = 2.0 * (48 * 192 + 192 + 2) * torch.sigmoid(torch.tensor(5.0))
    torch.testing.assert_close(penalty(model), expected)
