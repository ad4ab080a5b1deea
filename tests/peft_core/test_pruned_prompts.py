"""Prompts that lose tokens and pieces after a first training: scores, what is left, what is put back, and a killed run."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from peft_core import PeftError, adapt, lifecycle, load_adapter, save_adapter
from peft_core.parts.tokens.pieces import Masked, Masks
from tests.peft_core.test_made_prompts import DEPTH, X, adapted, joined, split, vit, walk

LABELS = torch.tensor([0, 2, 1])


class Batches:
    """Losses of two batches, in order, as often as they are asked for."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __iter__(self):
        for labels in (LABELS, LABELS.flip(0)):
            yield nn.functional.cross_entropy(self.model(X), labels)


def masks_of(model: nn.Module) -> list[Masks]:
    return [module for module in model.modules() if isinstance(module, Masks)]


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {key: p.detach().clone() for key, p in model.named_parameters() if p.requires_grad}


def test_the_lowest_go_and_all_starts_again() -> None:
    model = adapt(vit(), "e2vpt", tokens=5, prune_tokens=0.5, prune_pieces=0.6, pieces=8, passes=2)
    before = trained(model)
    lifecycle.prepare(model, Batches(model))
    (masks,) = masks_of(model)
    assert masks.tokens.sum() == 3 and masks.pieces.sum(1).tolist() == [4] * 5  # ⌊0.5 · 5⌋ go; of 8 pieces four stay
    assert all(torch.equal(value, before[key]) for key, value in trained(model).items())
    assert model.training and all(m.training for m in model.modules())


def test_of_x_prompts_tokens_the_rest_keep_what_training_made() -> None:
    model = adapt(vit(), "x_prompt", tokens=4, pieces=4, prune_tokens=0.9, prune_pieces=0.9, passes=1, first_lr=0.1)
    before = trained(model)
    lifecycle.prepare(model, Batches(model))
    (masks,) = masks_of(model)
    assert masks.tokens.sum() == 1 and masks.pieces.all()  # one token and four pieces stay
    assert all(not torch.equal(value, before[key]) for key, value in trained(model).items())


def test_scores_are_gradients_of_masks() -> None:
    """E|∂L/∂γ| and E|∂L/∂ζ| by masks written out as tensors that take gradients, over single samples' losses."""
    model = adapt(vit(), "x_prompt", tokens=3, pieces=4, prune_tokens=0.4, prune_pieces=0.0, passes=0)
    (prompts,) = [module for module in model.modules() if isinstance(module, Masked)]
    token = torch.ones(3, 1, dtype=torch.float64, requires_grad=True)
    piece = torch.ones(3, 4, dtype=torch.float64, requires_grad=True)
    expected = torch.zeros(3, dtype=torch.float64)
    real = prompts.forward
    prompts.forward = lambda x: prompts.values * token * piece.repeat_interleave(4, 1)  # type: ignore[method-assign]
    for picture, label in zip(X, LABELS, strict=True):
        loss = nn.functional.cross_entropy(model(picture[None]), label[None])
        expected += torch.autograd.grad(loss, token)[0].abs().flatten() / 3
    prompts.forward = real  # type: ignore[method-assign]
    each = lifecycle.Losses(lambda batch: nn.functional.cross_entropy(model(batch[0]), batch[1]), [(X, LABELS)])
    ((tokens, _),) = lifecycle.adaptation_of(model, method_of(model)).method._scores(model, each).values()  # type: ignore
    torch.testing.assert_close(tokens, expected)
    lifecycle.prepare(model, each)
    assert not masks_of(model)[0].tokens[expected.argmin()] and masks_of(model)[0].tokens.sum() == 2


def method_of(model: nn.Module):
    return model.__dict__["_peft_record"].adaptations["x_prompt"].method


def test_masks_are_saved_and_resumed(tmp_path: Path) -> None:
    hyper = dict(tokens=4, pieces=8, passes=1)
    model = adapt(vit(), "x_prompt", **hyper)
    lifecycle.prepare(model, Batches(model))
    save_adapter(model.eval(), tmp_path)
    again = load_adapter(vit().eval(), tmp_path)
    assert torch.equal(again(X), model(X)) and not masks_of(again)[0].tokens.all()
    resumed = adapt(vit(), "x_prompt", **hyper).eval()  # as a killed run goes on: no prepare, the checkpoint's tensors
    resumed.load_state_dict(model.state_dict())
    assert torch.equal(resumed(X), model(X))


def test_nothing_to_prune_by_is_told() -> None:
    model = adapt(vit(), "x_prompt", tokens=4, pieces=8)
    before = trained(model)
    with pytest.raises(PeftError, match="x_prompt chooses by the losses that prepare is given, and was given none"):
        lifecycle.prepare(model, [])
    assert all(torch.equal(value, before[key]) for key, value in trained(model).items())
    with pytest.raises(PeftError, match="17 pieces are more than a token's width, 16"):
        adapt(vit(), "e2vpt", pieces=17)
    assert not lifecycle.wants(adapt(vit(), "e2vpt"), "prepare")


def test_a_search_keeps_the_blocks_whose_gates_open(tmp_path: Path) -> None:
    model, stock, grafts = adapted("selective_prompt", tokens=2, keep=1, passes=2, gate_lr=0.5)
    replaced = [grafts[f"blocks.{i}/replaced"] for i in range(1, DEPTH)]
    before, gates = trained(model), [torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in replaced]
    carried = grafts["blocks.0/tokens"].tokens.expand(3, -1, -1)

    def block(index: int, x: Tensor) -> Tensor:
        nonlocal carried
        if index and opened[index - 1] is not None:
            carried = torch.lerp(carried, replaced[index - 1].values.expand(3, -1, -1), opened[index - 1])
        x, carried = split(stock.blocks[index](joined(x, carried)), 2)
        return x

    opened: list[Tensor | None] = [torch.sigmoid(gate) for gate in gates]
    for graft, gate in zip(replaced, gates, strict=True):
        graft.gate = gate
    torch.testing.assert_close(model(X), walk(stock, block))
    lifecycle.prepare(model, Batches(model))
    left = [len(graft.values) for graft in replaced]
    assert sorted(left) == [0, 0, 2] and all(graft.gate is None for graft in replaced)
    assert all(torch.equal(value, before[key]) for key, value in trained(model).items() if value.numel())
    opened = [torch.ones((), dtype=torch.float64) if count else None for count in left]
    carried = grafts["blocks.0/tokens"].tokens.expand(3, -1, -1)
    torch.testing.assert_close(model(X), walk(stock, block))
    save_adapter(model, tmp_path)
    assert torch.equal(load_adapter(vit().eval(), tmp_path)(X), model(X))
    resumed = adapt(vit(), "selective_prompt", tokens=2, keep=1).eval()
    resumed.load_state_dict(model.state_dict())
    assert torch.equal(resumed(X), model(X))
    with pytest.raises(PeftError, match="was given none"):
        lifecycle.prepare(adapt(vit(), "selective_prompt", keep=1), [])
