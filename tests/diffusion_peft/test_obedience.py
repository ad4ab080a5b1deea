"""Figures of obedience, by hand."""

import pytest
import torch

from diffusion_peft.evaluation.obedience import average_precision, detect, edge_f1, iou, mean_iou, rmse, ssim
from diffusion_peft.evaluation.watcher import CLASSES, Seen, Watcher, train_watcher


def test_edges() -> None:
    true = torch.zeros(1, 8, 8, dtype=torch.bool)
    true[0, 3, 1:5] = True
    near = torch.roll(true, 1, 1)
    far = torch.roll(true, 3, 1)
    assert edge_f1(true, true) == 1.0 and edge_f1(near, true) == 1.0 and edge_f1(far, true) == 0.0
    assert edge_f1(near, true, reach=0) == 0.0
    half = true.clone()
    half[0, 7] = True  # four right pixels of twelve, all found: P = 1/3, R = 1
    assert edge_f1(half, true) == pytest.approx(0.5)
    nothing = torch.zeros_like(true)
    assert edge_f1(nothing, nothing) == 1.0 and edge_f1(nothing, true) == 0.0
    assert ssim(true.float().repeat(1, 2, 2), true.float().repeat(1, 2, 2)) == pytest.approx(1.0)


def test_masks_and_depth() -> None:
    true = torch.tensor([[[0, 0, 1, 1]]])
    said = torch.tensor([[[0, 1, 1, 1]]])
    assert mean_iou(said, true, 3) == pytest.approx((1 / 2 + 2 / 3) / 2)  # class 2 occurs nowhere
    assert rmse(torch.tensor([[[0.0, 1.0]]]), torch.tensor([[[0.0, 0.0]]])) == pytest.approx(0.5**0.5)


def test_boxes() -> None:
    a, b = (0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0)
    assert iou(a, a) == 1 and iou(a, b) == 0 and iou(a, (0.0, 0.0, 0.5, 0.25)) == pytest.approx(0.5)
    true = [[(a, 1), (b, 2)], [(a, 1)]]
    assert average_precision([[(a, 1, 0.9), (b, 2, 0.8)], [(a, 1, 0.7)]], true) == 1.0
    # class 1: the best guess is wrong, the second right: precision 1/2 at recall 1/2; class 2: right
    assert average_precision([[(b, 1, 0.9), (b, 2, 0.8)], [(a, 1, 0.7)]], true) == pytest.approx((0.25 + 1) / 2)
    assert average_precision([[], []], true) == 0.0
    # the same thing twice counts once
    assert average_precision([[(a, 1, 0.9), (a, 1, 0.8)], []], [[(a, 1)], [(a, 1)]]) == pytest.approx(0.5)


def test_detection() -> None:
    chances = torch.zeros(1, CLASSES, 8, 8)
    chances[:, 0] = 1.0
    chances[0, :, 2:6, 1:5] = 0
    chances[0, 4, 2:6, 1:5] = 1.0
    chances[0, :, 0, 7] = torch.eye(CLASSES)[5]  # one pixel is too small
    seen = Seen(chances, torch.zeros(1, 8, 8), torch.zeros(1, 8, 8))
    assert detect(seen) == [[((0.125, 0.25, 0.625, 0.75), 4, 1.0)]]


def test_watcher_learns_the_same_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    from peft_data.world import control

    monkeypatch.setattr(control, "BLOCK", 8)
    monkeypatch.setattr("diffusion_peft.evaluation.watcher.SCENES", 8)
    one, other = train_watcher(2), train_watcher(2)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))
    seen = Watcher().eval().see(torch.zeros(2, 3, 64, 64, dtype=torch.uint8))
    assert seen.chances.shape == (2, CLASSES, 64, 64) and seen.outlines.shape == seen.nearness.shape == (2, 64, 64)
