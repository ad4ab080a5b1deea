"""A diffusers UNet adapted in a plain PyTorch loop: it learns to remove noise from latents of one kind.

python examples/unet.py                                                   # random weights, without a network
python examples/unet.py --base stable-diffusion-v1-5/stable-diffusion-v1-5 --method oft
"""

import argparse
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, UNet2DConditionModel

from peft_core import adapt, count_parameters, disabled, lifecycle, save_adapter

options = argparse.ArgumentParser()
options.add_argument("--base", help="a base whose UNet is loaded from its hub")
options.add_argument("--method", default="lora")
options.add_argument("--steps", type=int, default=150)
options.add_argument("--lr", type=float, default=3e-3)
options.add_argument("--out", default="unet_adapter")
args = options.parse_args()
torch.manual_seed(0)
if args.base:
    unet: Any = UNet2DConditionModel.from_pretrained(args.base, subfolder="unet")
else:
    unet = UNet2DConditionModel(
        sample_size=8, layers_per_block=1, block_out_channels=(32, 64), norm_num_groups=8, cross_attention_dim=32,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=8,
    )  # fmt: skip
size, width = unet.config.sample_size, unet.config.cross_attention_dim
noising: Any = DDPMScheduler(num_train_timesteps=1000)
words = torch.randn(1, 4, width)  # what a text encoder would give


def loss_of(count: int = 8) -> torch.Tensor:
    """L = ‖ε − ε_θ(x_t, t)‖² for latents of stripes."""
    stripes = torch.sin(torch.arange(size) * torch.pi / 2 + torch.rand(count, 1) * 6).view(count, 1, 1, size)
    latents, noise = stripes.expand(count, 4, size, size), torch.randn(count, 4, size, size)
    noised = noising.add_noise(latents, noise, times := torch.randint(1000, (count,)))
    return F.mse_loss(unet(noised, times, words.expand(count, -1, -1)).sample, noise)


adapt(unet, args.method, targets=("attn", "cross_attn", "mlp", "conv")).train()
print(count_parameters(unet))
lifecycle.prepare(unet, (loss_of() for _ in range(4)))
optimiser = torch.optim.AdamW(lifecycle.parameter_groups(unet, args.lr))
for step in range(args.steps):
    optimiser.zero_grad()
    (loss_of() + lifecycle.penalty(unet)).backward()
    optimiser.step()
    lifecycle.after_step(unet, lifecycle.Progress(step + 1, args.steps))
lifecycle.finish(unet)
save_adapter(unet.eval(), args.out)
with torch.no_grad(), disabled(unet):
    frozen = torch.stack([loss_of() for _ in range(20)]).mean().item()
with torch.no_grad():
    loss = torch.stack([loss_of() for _ in range(20)]).mean().item()
print(f"loss {loss:.3f}, {frozen:.3f} without, adapter in {args.out}")
