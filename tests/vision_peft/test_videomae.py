"""VideoMAE: Hugging Face's outputs, both layouts of its files, its norm and its positions."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification

from peft_core import PeftError, adapt, count_parameters, load_adapter, save_adapter
from peft_core.jobs.hub.timm_models import _load_weights
from tests.vision_peft.test_video import SIZE, clips
from vision_peft.video.classified import as_video
from vision_peft.video.joint import JointViT, _videomae, sinusoid

SHAPE: dict[str, Any] = dict(
    image_size=32, patch_size=8, num_frames=4, tubelet_size=2, hidden_size=48, num_hidden_layers=2, num_attention_heads=3,
    intermediate_size=192, num_labels=5, layer_norm_eps=1e-6, decoder_hidden_size=24, decoder_intermediate_size=48,
    decoder_num_attention_heads=3, decoder_num_hidden_layers=1,
)  # fmt: skip


def videomae() -> JointViT:
    return _videomae("tiny", 8, 48, 2, 3, img_size=32, frames=4, num_classes=5).eval()


def shaken(model: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def test_videomae_equals_hugging_faces() -> None:
    theirs, mine = shaken(VideoMAEForVideoClassification(VideoMAEConfig(**SHAPE))), videomae()
    mine.load_state_dict(mine.map_keys(theirs.state_dict()))
    torch.testing.assert_close(mine(clips()), theirs(clips()).logits, rtol=1e-4, atol=1e-4)


def test_videomae_keys_of_both_layouts(tmp_path: Path) -> None:
    mine = shaken(videomae())
    mine.pos_embed.data = videomae().pos_embed.data
    own = mine.state_dict()
    theirs = {
        f"encoder.{key}": value for key, value in own.items() if not key.startswith(("head", "pos_embed", "fc_norm"))
    }
    theirs |= {"encoder.norm.weight": own["fc_norm.weight"], "encoder.norm.bias": own["fc_norm.bias"]}
    for block in range(2):
        bias = theirs.pop(f"encoder.blocks.{block}.attn.qkv.bias")
        bias[48:96] = 0  # keys have none
        theirs[f"encoder.blocks.{block}.attn.q_bias"], theirs[f"encoder.blocks.{block}.attn.v_bias"] = (
            bias[:48],
            bias[96:],
        )
    theirs |= {"decoder.blocks.0.norm1.weight": torch.ones(3), "mask_token": torch.zeros(1, 1, 3)}
    save_file({key: value.contiguous().clone() for key, value in theirs.items()}, tmp_path / "theirs.safetensors")
    again = videomae()
    _load_weights(again, tmp_path / "theirs.safetensors", "videomae_tiny")
    again.head.load_state_dict(mine.head.state_dict())
    torch.testing.assert_close(again(clips()), mine(clips()), rtol=1e-5, atol=1e-5)
    pretrained = shaken(VideoMAEForPreTraining(VideoMAEConfig(**SHAPE, use_mean_pooling=False))).state_dict()
    mapped = again.map_keys(
        {key.replace("query.bias", "q_bias").replace("value.bias", "v_bias"): v for key, v in pretrained.items()}
    )
    assert set(mapped) == {key for key in own if not key.startswith("head")}


@pytest.mark.parametrize(("file", "norm", "trains"), [
    ("pretrained", "fresh", True), ("pretrained", "file", False), ("fine-tuned", "fresh", False),
])  # fmt: skip
def test_a_new_last_norm_trains_and_is_saved_with_the_head(file: str, norm: str, trains: bool, tmp_path: Path) -> None:
    own = shaken(videomae()).state_dict()
    renamed = {key.replace("fc_norm", "encoder.norm"): value for key, value in own.items()}
    state = {key: value for key, value in (renamed if file == "pretrained" else own).items() if key != "pos_embed"}

    def stock() -> nn.Module:
        model = videomae()
        model.load_state_dict(model.map_keys(state))
        return as_video(model, 4, SIZE, {"norm": norm, "head": "batch_norm"})

    model = adapt(stock(), "linear")
    new = torch.equal(model.fc_norm.weight, torch.ones(48))
    assert new == trains and model.fc_norm.weight.requires_grad == trains
    assert count_parameters(model).head == 5 * 49 + (96 if trains else 0)
    model.train()
    nn.functional.cross_entropy(model(clips()), torch.tensor([0, 1])).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= parameter.grad
    again = load_adapter(stock(), save_adapter(model, tmp_path / "a")).eval()
    torch.testing.assert_close(again(clips()), model.eval()(clips()))


def test_videomae_positions_follow_the_frames() -> None:
    with torch.device("meta"):
        model = timm.create_model("videomae_base_patch16_224", num_classes=174)
        assert model.pos_embed.shape == (1, 8 * 196, 768)
        # AdaptFormer-64 on it: the paper's 1.19 M
        assert count_parameters(adapt(model, "adaptformer", bottleneck=64)).inserted == 1_189_632
    small = videomae()
    small.set_frames(8)
    assert torch.equal(small.pos_embed[0], sinusoid(4 * 16, 48)) and small(clips(frames=8)).shape == (2, 5)
    with pytest.raises(PeftError, match="does not divide clips of 3"):
        small.set_frames(3)
