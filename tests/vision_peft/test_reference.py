"""The reference ViT: a plain timm model whose card tells the truth, and a training that a kill does not change."""

from __future__ import annotations

import math
import sys

import pytest
import timm
import torch
from safetensors.torch import load_file

from vision_peft import reference
from vision_peft.reference import train


def test_it_is_a_plain_timm_model_and_the_card_matches() -> None:
    model = reference.load()
    assert type(model) is timm.models.VisionTransformer
    assert sum(p.numel() for p in model.parameters()) == reference.CARD["parameters"]
    assert 1_000_000 <= reference.CARD["parameters"] <= 2_500_000
    assert len(model.blocks) == 12 and model.pos_embed.shape[1] <= 50
    assert reference.WEIGHTS.stat().st_size <= 5_000_000
    assert {value.dtype for value in load_file(reference.WEIGHTS).values()} == {torch.float16}
    assert model.pretrained_cfg["input_size"] == (3, 40, 40) and model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)


def test_head_and_further_arguments() -> None:
    model = reference.load(num_classes=7, drop_path_rate=0.1).eval()
    assert model(torch.zeros(2, 3, 40, 40)).shape == (2, 7)
    assert torch.equal(model.blocks[3].mlp.fc1.weight, reference.load().blocks[3].mlp.fc1.weight)
    fresh = reference.load(pretrained=False)
    assert not torch.equal(fresh.blocks[3].mlp.fc1.weight, model.blocks[3].mlp.fc1.weight)


def test_bad_files_and_arguments_are_said(tmp_path, monkeypatch) -> None:
    with pytest.raises(ValueError, match="pretrained=False"):
        reference.load(embed_dim=48)
    damaged = tmp_path / "vit.safetensors"
    damaged.write_bytes(reference.WEIGHTS.read_bytes()[:1000])
    monkeypatch.setattr(reference, "WEIGHTS", damaged)
    with pytest.raises(ValueError, match="cannot be read"):
        reference.load()


def test_the_reference_knows_what_its_card_says(tmp_path, monkeypatch) -> None:
    """Linear probes on one pretraining attribute it was trained on: far above chance."""
    monkeypatch.setenv("PEFT_DATA_CACHE", str(tmp_path))
    figures = reference.CARD["held-out pretraining pictures, % correct"]
    assert figures["family"] > 95 and figures["shape"] > 3 * 100 / train.HEADS["shape"]


def test_training_goes_on_after_a_kill_with_the_same_result(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PEFT_DATA_CACHE", str(tmp_path))
    monkeypatch.setattr(train, "accuracies", lambda model, seed: {})
    keep = train.keep

    def run(name: str, killed: bool = False) -> dict[str, torch.Tensor]:
        def keep_then_die(tensors: dict[str, torch.Tensor], path) -> None:
            keep(tensors, path)
            if killed and path.name.startswith("weights"):
                raise KeyboardInterrupt

        (tmp_path / name).mkdir(exist_ok=True)
        state, weights = tmp_path / name / "state.safetensors", tmp_path / name / "weights.safetensors"
        monkeypatch.setattr(train, "keep", keep_then_die)
        monkeypatch.setattr(
            sys,
            "argv",
            [
                "train",
                "--steps",
                "4",
                "--every",
                "2",
                "--blocks",
                "1",
                "--batch",
                "16",
                "--state",
                str(state),
                "--weights",
                str(weights),
            ],
        )
        if killed:
            with pytest.raises(KeyboardInterrupt):
                train.main()
        else:
            train.main()
        return load_file(weights)

    straight = run("straight")
    run("broken", killed=True)
    resumed = run("broken")
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)
    assert math.isfinite(sum(value.float().sum().item() for value in straight.values()))
