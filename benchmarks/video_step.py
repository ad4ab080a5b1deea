"""Time and memory of a training step on clips, as ratios to the floor (frozen forward and input gradient), and the ways to
run ST-Adapter's convolution over frames.

python -m benchmarks.video_step                # ViT-S/16, one clip of 8 frames, float32
python -m benchmarks.video_step --only conv    # the convolution alone

On a CPU the processor's own clock is read, so that other work on the machine counts little; take OMP_NUM_THREADS=1.
"""

import argparse
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measuring import CPU, interleaved, machine, options, ratios, wanted, write_ratios
from benchmarks.variants import Trainer, Variant, floor, ours
from peft_core.counting import count_flops, kept_bytes
from vision_peft.video.over_time import DepthwiseOverTime

FRAMES = 8
VARIANTS = [
    Variant("floor", floor),
    Variant("full fine-tuning", ours("full")),
    Variant("linear", ours("linear")),
    Variant("lora r8 q,v", ours("lora", rank=8, targets=("q", "v"))),
    Variant("adaptformer 64", ours("adaptformer", bottleneck=64, dropout=0.0)),
    Variant("st_adapter 12 × D/2", ours("st_adapter", frames=FRAMES)),
    Variant("st_adapter 24 × D/2", ours("st_adapter", frames=FRAMES, positions=("attn", "mlp"))),
    Variant("aim, 3 a block", ours("aim", frames=FRAMES)),
    Variant("aim, 4 a block", ours("aim", frames=FRAMES, per_block=4)),
]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--arch", default="vit_small_patch16_224")
    parser.add_argument("--clips", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", choices=("step", "conv", "both"), default="both")
    parser.add_argument("--methods", nargs="*", default=[], help="words of their names; all without")
    args = parser.parse_args()
    if args.only != "conv":
        steps(args)
    if args.only != "step":
        convolutions(args.clips, 3 * args.rounds, device=args.device)


def steps(args: argparse.Namespace) -> None:
    """Each method beside the floor, two models in memory at a time: with all of them, their places in memory count too."""
    frames = args.clips * FRAMES
    base = Trainer(VARIANTS[0], args.arch, frames, device=args.device)
    flops, kept = count_flops(base.step), kept_bytes(base.loss, base.model)
    part = f"{args.arch}, {args.clips} clip(s) of {FRAMES} frames, float32"
    print(f"{part}, {args.rounds} interleaved pairs, {machine(args.device)}")
    print(f"| {'method':22} | time | FLOPs | bytes kept |\n|---|---|---|---|")
    for variant in VARIANTS[1:]:
        if variant.name not in wanted(args.methods, [v.name for v in VARIANTS]):
            continue
        own = Trainer(variant, args.arch, frames, device=args.device)
        runs = {"floor": base.step, variant.name: own.step}
        seconds = interleaved(runs, args.rounds, args.device, of_process=True)
        ratio = ratios(seconds, "floor")[variant.name]
        shares = (count_flops(own.step) / flops, kept_bytes(own.loss, own.model) / kept)
        print(f"| {variant.name:22} | {ratio:.2f} | {shares[0]:.2f} | {shares[1]:.2f} |", flush=True)
        write_ratios(args.ratios, part, variant.name, time=ratio, kept=shares[1])


def conv3d(x: Tensor, conv: DepthwiseOverTime) -> Tensor:
    """Channels to the front and nn.functional.conv3d with a group a channel, as the paper's code has it."""
    y = F.conv3d(x.permute(0, 3, 1, 2)[..., None], conv.weight, conv.bias, padding=(1, 0, 0), groups=x.shape[-1])
    return y[..., 0].permute(0, 2, 3, 1)


def conv1d(x: Tensor, conv: DepthwiseOverTime) -> Tensor:
    """A convolution along T at each place."""
    batch, frames, tokens, channels = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(-1, channels, frames)
    y = F.conv1d(rows, conv.weight.flatten(2), conv.bias, padding=1, groups=channels)
    return y.view(batch, tokens, channels, frames).permute(0, 3, 1, 2)


def shifted_pads(x: Tensor, conv: DepthwiseOverTime) -> Tensor:
    """Three products, two of them padded."""
    past, now, future = conv.weight.view(-1, 3).unbind(1)
    y = torch.addcmul(conv.bias, x, now)
    y = y + F.pad(x[:, :-1] * past, (0, 0, 0, 0, 1, 0))
    return y + F.pad(x[:, 1:] * future, (0, 0, 0, 0, 0, 1))


def shifted_views(x: Tensor, conv: DepthwiseOverTime) -> Tensor:
    """Three products of views of x padded once."""
    past, now, future = conv.weight.view(-1, 3).unbind(1)
    wide = F.pad(x, (0, 0, 0, 0, 1, 1))
    frames = x.shape[1]
    y = torch.addcmul(conv.bias, wide[:, :frames], past)
    return torch.addcmul(torch.addcmul(y, x, now), wide[:, 2:], future)


def band_matrix(x: Tensor, conv: DepthwiseOverTime) -> Tensor:
    """A product with a band matrix T T for every channel."""
    frames = x.shape[1]
    time = torch.arange(frames, device=x.device)
    offset = time[None] - time[:, None] + 1
    band = conv.weight.view(-1, 3)[:, offset.clamp(0, 2)] * ((offset >= 0) & (offset <= 2))
    return torch.einsum("cts,bsnc->btnc", band, x) + conv.bias


WAYS: dict[str, Callable[[Tensor, DepthwiseOverTime], Tensor]] = {
    "conv3d, a group a channel": conv3d,
    "conv1d at each place": conv1d,
    "three products, padded": shifted_pads,
    "three products, views": shifted_views,
    "band matrix a channel": band_matrix,
    "conv2d, channels last (used)": lambda x, conv: conv(x),
}


def convolutions(
    clips: int, rounds: int, places: int = 196, channels: int = 384, device: torch.device = CPU
) -> dict[str, float]:
    """Prints forward and backward of each way, as ratios to conv3d's; all agree to 1e-5."""
    torch.manual_seed(0)
    conv = DepthwiseOverTime(channels, {})
    for parameter in conv.parameters():
        torch.nn.init.normal_(parameter)
    conv.to(device)
    x, g = (torch.randn(clips, FRAMES, places, channels).to(device) for _ in range(2))
    x.requires_grad_()
    wanted = [conv3d(x, conv), *torch.autograd.grad(conv3d(x, conv), (x, conv.weight, conv.bias), g)]

    def run(way: Callable[[Tensor, DepthwiseOverTime], Tensor]) -> Callable[[], list[Tensor]]:
        def both() -> list[Tensor]:
            y = way(x, conv)
            return [y, *torch.autograd.grad(y, (x, conv.weight, conv.bias), g)]

        return both

    for name, way in WAYS.items():
        for mine, theirs in zip(run(way)(), wanted, strict=True):
            assert (mine - theirs).abs().max() <= 1e-5 * max(1.0, theirs.abs().max().item()), name
    seconds = interleaved({name: run(way) for name, way in WAYS.items()}, rounds, device, of_process=True)
    found = ratios(seconds, "conv3d, a group a channel")
    print(
        f"\nkernel (3, 1, 1), {clips} × {FRAMES} × {places} × {channels}, forward and backward, equal to 1e-5, "
        f"{machine(device)}"
    )
    print(f"| {'way':26} | time to conv3d |\n|---|---|")
    for name, ratio in found.items():
        print(f"| {name:26} | {ratio:.2f} |")
    return found


if __name__ == "__main__":
    main()
