"""Forward, gradient and one training step against tensors that the authors' own code gave, in float64 with random weights.

Each golden file's metadata names repository, commit and file. What of them was mapped onto timm's names:
ZhangYuanhan-AI/NOAH e9c55f3: LoRA on the fused qkv, adapter, prompts, the supernet's step; drop path and dropout on;
JamesQFreeman/LoRA-ViT 45be249: `_LoRA_qkv_timm` on a ViT with layer scale;
visinf/adapter_plus 191c4ab: post with channel scale, houlsby, intermediate (`pfeiffer` here), parallel; layer scale, drop path;
ShoufaChen/AdaptFormer 6967d67: unfused q, k, v, mean pooling, learnt scale; the video model, its BatchNorm head and fc_norm;
dongzelian/SSF e94e0e7: layer scale and drop path;
KMnP/vpt 4410440: shallow, deep, MAE's two ways to pool, `tinytl-bias`;
heekhero/DTL bf6c51e: four blocks, h joins behind the last two; DTL+ on 2 × 2 patches in place of 14 × 14; drop path;
Leiyi-Hu/mona 5deeac9: its modules behind the steps of a ViT without class token, width 4 in place of 64; drop path;
JieShibo/PETL-ViT 026e4f1: both forms of FacT, for a width of 16 in place of 768, dropout and drop path;
linziyi96/st-adapter b914b38, taoyang1122/adapt-image-models b3580d2: CLIP's ViT (QuickGELU, a norm before the
blocks), frames folded into the batch, heads with dropout.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import open_clip
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core import adapt
from peft_core.registry import make_method
from tests.parity.golden import counted_draws, golden, values
from vision_peft.noah.forms import Forms
from vision_peft.noah.space import Space
from vision_peft.noah.supernet import Supernet
from vision_peft.video.classified import Classified, as_video
from vision_peft.video.joint import _videomae

LABELS = torch.tensor([0, 2, 1])
PICTURES, CLIPS = values("x", (3, 3, 8, 8)), values("x", (2, 4, 3, 8, 8))  # B T 3 H W
STEP = 0.5


def vit(name: str = "vit_tiny_patch16_224", **changes: Any) -> nn.Module:
    settings = dict(img_size=8, patch_size=4, embed_dim=16, num_heads=2, depth=2, num_classes=5) | changes
    return timm.create_model(name, **settings).double()


def tower() -> nn.Module:
    """CLIP's ViT as open_clip has it, with a head on the features before its projection."""
    visual = open_clip.transformer.VisionTransformer(
        image_size=8, patch_size=4, width=16, layers=2, heads=2, mlp_ratio=4.0, output_dim=8,
        act_layer=open_clip.transformer.QuickGELU,
    )  # fmt: skip
    visual.proj = None
    return Classified(visual, nn.Linear(16, 5)).double()


OPEN_CLIP = {
    "transformer.resblocks.": "blocks.", "ln_1": "norm1", "ln_2": "norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "attn.proj", "attn.in_proj_": "attn.qkv.", "ln_pre": "norm_pre", "ln_post": "norm",
    "conv1": "patch_embed.proj", "class_embedding": "cls_token", "positional_embedding": "pos_embed",
}  # fmt: skip


TAIL = r"(?:down\.|up\.|conv\.|(?<=change\.)norm\.|mix\.|over\.\d\.)?(?:weight|bias|A|B|gamma(?:_x)?|beta|scale)$"


def name_there(key: str, inserted: dict[str, str]) -> str:
    """A parameter's name as the golden files have it: timm's, or `blocks.0.WORD.down.weight` for what is inserted.

    Args:
        inserted: pattern in an inserted parameter's key -> its word.
    """
    key = key.removeprefix("image.")
    if "peft" not in key.split("."):
        for theirs, ours in OPEN_CLIP.items():
            key = key.replace(theirs, ours)
        return key
    if "temporal_embedding" in key:
        return "temporal_embedding"
    block, tail = re.search(r"blocks\.\d+", key), re.search(TAIL, key)
    match, word = next((m, word) for pattern, word in inserted.items() if (m := re.search(pattern, key)))
    return ".".join(part for part in (block and block[0], match.expand(word), tail and tail[0]) if part)


@dataclass
class Case:
    """A method on a model.

    Args:
        stock: changes of timm's tiny ViT; None for open_clip's tower.
        inserted: see `name_there`.
        video: as `as_video` takes it, for clips.
        widest: a supernet's width, of which the parameters are the first part.
    """

    stock: dict[str, Any] | None
    method: str
    hyper: dict[str, Any]
    inserted: dict[str, str]
    video: dict[str, Any] | None = None
    widest: int | None = None

    def model(self) -> nn.Module:
        model = tower() if self.stock is None else vit(**self.stock)
        if self.video is not None:
            model = as_video(model, 4, (8, 8), self.video, make_method(self.method, **self.hyper)).double()
        return adapt(model, self.method, **self.hyper)


ADAPTER, PROMPTS = {"peft": "adapter"}, {"tokens": "prompts"}
AIM = {"into": "into", "over_time": "time", "(drop_path1|ls_1)": "space", "mlp_branch": "joint"}
MEAN = dict(global_pool="avg", drop_path_rate=0.5)
SCALED = dict(init_values=0.1, drop_path_rate=0.5)
CLIP = "vit_base_patch16_clip_quickgelu_224"
OVER_TIME: dict[str, Any] = dict(video={"dropout": 0.5})
FACT: dict[str, Any] = dict(rank=3, scale=10.0, dropout=0.1)
FACTORS = {r"shared_([UVCP])": r"\1", r"fact\.(\w+)\.core": r"sigma.\1"}
GATHER = {"gather": "gather", "shared_fuse.value": "fuse"}
SUBNET, OTHER = ((3, 2), (2, 1), (1, 3)), ((2, 4), (4, 3), (2, 4))  # rows of vpt, lora, adapter

CASES = {
    "noah_lora": Case(dict(drop_path_rate=0.5), "lora", dict(rank=4, targets=("qkv",), dropout=0.1), {"qkv": "lora"}),
    "noah_adapter": Case(
        dict(drop_path_rate=0.5), "adapter", dict(bottleneck=4, activation="quick_gelu", dropout=0.1), ADAPTER
    ),
    "noah": Case(
        dict(drop_path_rate=0.5), "noah",
        dict(widths=dict(zip(("vpt", "lora", "adapter"), map(list, SUBNET), strict=True)), settings={"vpt": {"dropout": 0.25}}),
        PROMPTS | {"qkv": "lora"} | ADAPTER, widest=4,
    ),
    "lora_vit": Case(dict(init_values=0.1), "lora", dict(rank=3, alpha=6), {r"lora\.(\w)\.": r"lora.\1"}),
    "adapter_plus": Case(SCALED, "adapter_plus", dict(bottleneck=3, drop_path=0.5), ADAPTER),
    "adapter_houlsby": Case(
        SCALED, "adapter", dict(bottleneck=3, position="houlsby"), {"drop_path1": "adapter_attn"} | ADAPTER
    ),
    "adapter_pfeiffer": Case(SCALED, "adapter", dict(bottleneck=3), ADAPTER),
    "adapter_parallel": Case(SCALED, "adapter", dict(bottleneck=3, position="parallel"), ADAPTER),
    "adaptformer": Case(MEAN, "adaptformer", dict(bottleneck=3), ADAPTER),
    "adaptformer_learnt_scale": Case(MEAN, "adaptformer", dict(bottleneck=3, learn_scale=True), ADAPTER),
    "ssf": Case(SCALED, "ssf", {}, {r"peft\.ssf\.(\w+)\.": r"ssf.\1"}),
    "vpt_shallow": Case({}, "vpt", dict(tokens=3, dropout=0.25), PROMPTS),
    "vpt_deep": Case({}, "vpt", dict(tokens=3, dropout=0.25, deep=True), PROMPTS),
    "vpt_mean_images": Case(MEAN, "vpt", dict(tokens=3, dropout=0.25, deep=True), PROMPTS),
    "vpt_mean_all": Case(MEAN, "vpt", dict(tokens=3, dropout=0.25, pool_prompts=True), PROMPTS),
    "bitfit": Case({}, "bitfit", {}, {}),
    "dtl": Case(MEAN | {"depth": 4}, "dtl", dict(rank=3, beta=2.0), GATHER),
    "dtl_plus": Case(MEAN | {"depth": 4}, "dtl", dict(rank=3, beta=2.0, kernel=3), GATHER),
    "mona": Case(
        MEAN | {"patch_size": 2, "class_token": False}, "mona", dict(bottleneck=4),
        {"drop_path1": "mona_attn", "drop_path2": "mona_mlp"},
    ),
    "fact_tt": Case(dict(drop_path_rate=0.5), "fact", FACT, FACTORS),
    "fact_tk": Case(dict(drop_path_rate=0.5), "fact", FACT | {"form": "tk"}, FACTORS),
    "st_adapter_mlp": Case(dict(name=CLIP), "st_adapter", dict(width=3, frames=4), {"peft": "adapter_mlp"}, **OVER_TIME),
    "st_adapter_both": Case(
        None, "st_adapter", dict(width=3, frames=4, positions=("attn", "mlp")),
        {"before_attn": "adapter_attn", "attn_branch": "adapter_mlp"}, **OVER_TIME,
    ),
    "aim_clip": Case(None, "aim", dict(width=4, frames=4, per_block=4), AIM, **OVER_TIME),
    "aim_imagenet": Case({}, "aim", dict(width=4, frames=4, drop_path=0.5), AIM, **OVER_TIME),
}  # fmt: skip


def fill(model: nn.Module, case: Case) -> dict[str, str]:
    """The golden files' weights, in parameters whose narrow form is the first part of a supernet's; key -> name there."""
    names = {key: name_there(key, case.inserted) for key, _ in model.named_parameters()}
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            shape = whole(names[key], parameter.shape, case.widest)
            given = values(names[key], shape)
            parameter.copy_(
                given[tuple(slice(size) for size in parameter.shape)] if case.widest else given.reshape(parameter.shape)
            )
    return names


def whole(name: str, shape: Any, widest: int | None) -> tuple[int, ...]:
    """The shape that a tensor has there: class token and positions 1 N D, a supernet's width in full."""
    if name in ("cls_token", "pos_embed"):
        return (1, 1 if name == "cls_token" else shape[-2], shape[-1])
    if widest and not name.endswith("up.bias"):
        axis = next(
            (
                a
                for end, a in (
                    ("prompts", 0),
                    (".A", 0),
                    (".B", 1),
                    ("down.weight", 0),
                    ("down.bias", 0),
                    ("up.weight", 1),
                )
                if name.endswith(end)
            ),
            None,
        )
        if axis is not None:
            return tuple(widest if index == axis else size for index, size in enumerate(shape))
    return tuple(shape)


def check(
    case: str,
    model: nn.Module,
    names: dict[str, str],
    run: Callable[[], Tensor],
    labels: Tensor,
    after: Callable[[], None],
) -> None:
    """Forward in train mode with counted draws, gradients, and the forward in eval mode after a step of SGD."""
    there = golden(case)
    model.train()
    with counted_draws():
        logits = run()
    torch.testing.assert_close(logits, there["logits"], rtol=1e-9, atol=1e-10)
    F.cross_entropy(logits, labels).backward()
    trained = {names[key]: p for key, p in model.named_parameters() if p.requires_grad}
    assert set(trained) == {key.removeprefix("grad.") for key in there if key.startswith("grad.")}
    for name, parameter in trained.items():
        expected = there[f"grad.{name}"]
        part = expected[tuple(slice(size) for size in parameter.shape)]
        assert expected.count_nonzero() == part.count_nonzero(), (
            f"{name}: rows beside the chosen ones have a gradient there"
        )
        torch.testing.assert_close(
            parameter.grad,
            part,
            rtol=1e-8,
            atol=1e-10,
            msg=lambda text, name=name: f"{name}: {text}",
        )
    with torch.no_grad():
        for parameter in trained.values():
            parameter -= STEP * parameter.grad
        model.eval()
        after()
        torch.testing.assert_close(run(), there["stepped"], rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("case", CASES)
def test_a_step_is_the_authors(case: str) -> None:
    model = CASES[case].model()
    names = fill(model, CASES[case])
    images, labels = (CLIPS, LABELS[:2]) if CASES[case].video else (PICTURES, LABELS)
    check(case, model, names, lambda: model(images), labels, lambda: None)


def test_a_supernets_step_and_the_next_subnet_are_the_authors() -> None:
    space, case = Space(dims=(1, 2, 3, 4), depths=(2,)), CASES["noah"]
    model = adapt(vit(drop_path_rate=0.5), space.method(space.widest(2)))
    names = fill(model, case)
    net = Supernet(model, Forms(model, space))
    net.choose(SUBNET)
    check("noah_supernet", model, names, lambda: net(PICTURES), LABELS, lambda: net.choose(OTHER))


def test_a_step_of_adaptformer_on_clips_with_its_head_is_the_authors() -> None:
    """VideoMAE's ViT, fixed positions and no bias of keys; BatchNorm's running statistics after the step, too."""
    joint = _videomae("tiny", 4, 16, 2, 2, img_size=8, frames=4, num_classes=5).double()
    joint.norm_is_elsewhere = True  # as a file of pretraining has it
    model = as_video(joint, 4, (8, 8), {"head": "batch_norm", "norm": "fresh"})
    adapt(model, "adaptformer", bottleneck=3, dropout=0.0)
    case = Case({}, "adaptformer", {}, ADAPTER)
    positions = model.pos_embed.clone()
    names = {key: name.replace("head.1.", "head.") for key, name in fill(model, case).items()}
    with torch.no_grad():
        model.pos_embed.copy_(positions)
        for block in model.blocks:
            block.attn.qkv.bias[16:32] = 0
        for key in ("weight", "bias"):
            getattr(model.head[1], key).copy_(values(f"head.{key}", getattr(model.head[1], key).shape))
    check("adaptformer_video", model, names, lambda: model(CLIPS), LABELS[:2], lambda: None)
    there = golden("adaptformer_video")
    torch.testing.assert_close(model.head[0].running_mean, there["buffer.mean"])
    torch.testing.assert_close(model.head[0].running_var, there["buffer.var"])
