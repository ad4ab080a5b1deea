from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion_peft.control.branch import Control, Named
from diffusion_peft.control.encoders import SHRINK
from diffusion_peft.control.files import write_light
from diffusion_peft.control.method import ControlMethod
from diffusion_peft.methods.controlnet import cross_normalise
from peft_core.errors import PeftError
from peft_core.grafts.calls import state
from peft_core.method import Method, Plan
from peft_core.values import Count


class LightNet(nn.Module):
    """Pictures B C H W and times to features: stem, two residual blocks with halvings, two middle convolutions.

    Layer names are those of the authors' files.
    """

    def __init__(self, out: int, width: int, channels: int, shrink: int) -> None:
        super().__init__()
        from diffusers.models.downsampling import Downsample2D
        from diffusers.models.embeddings import TimestepEmbedding, Timesteps
        from diffusers.models.resnet import ResnetBlock2D

        wide, time = 2 * width, 4 * width
        self.time_proj = Timesteps(wide, True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(wide, time)
        stem: list[nn.Module] = []
        for number, (before, after) in enumerate([(channels, width), (width, width), (width, wide)]):
            stride = 2 if number == 0 and shrink >= 8 else 1
            stem += [nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.GroupNorm(2, after), nn.ReLU()]
        self.embedding = nn.Sequential(*stem)
        sizes = [(wide, wide, 4), (wide, 2 * wide, 8)]
        self.down_res = nn.ModuleList(
            ResnetBlock2D(in_channels=a, out_channels=b, temb_channels=time, groups=groups) for a, b, groups in sizes
        )
        self.down_sample = nn.ModuleList(
            Downsample2D(b, use_conv=True, out_channels=b, padding=1, name="op") for _, b, _ in sizes
        )
        top = 2 * wide
        middle = [nn.Conv2d(top, top, 3, padding=1), nn.ReLU(), nn.GroupNorm(8, top), nn.Conv2d(top, top, 3, padding=1),
                  nn.GroupNorm(8, top)]  # fmt: skip
        self.mid_convs = nn.ModuleList([nn.Sequential(*middle), nn.Conv2d(top, out, 1)])

    def forward(self, picture: Tensor, time: Any) -> Tensor:
        time = torch.as_tensor(time, device=picture.device).reshape(-1).expand(len(picture))
        embedded = self.time_embedding(self.time_proj(time).to(picture.dtype))
        x = self.embedding(picture)
        for residual, halved in zip(self.down_res, self.down_sample, strict=True):
            x = halved(residual(x, embedded))
        return self.mid_convs[1](self.mid_convs[0](x) + x)


class Light(Control):
    """Runs the light network; its features are added behind the first down block."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def join(self, prepared: Any, given: dict[str, Any]) -> dict[str, Any]:
        state()[self.key, "features"] = self.net(prepared["picture"], given["timestep"])
        return {}


class Inject(Named):
    """y ← y + scale · the features, brought to y's mean, deviation and size."""

    def after(self, y: Tensor) -> Tensor:
        features = state().pop((self.key, "features"), None)
        if features is None:
            return y
        change = F.adaptive_avg_pool2d(cross_normalise(features, y), (y.shape[-2], y.shape[-1]))
        return y + (change if self.factor == 1.0 else change * self.factor)


@dataclass(frozen=True, kw_only=True)
class ControlNeXt(ControlMethod):
    """ControlNeXt: a light network whose features join the UNet once, with cross normalisation.

    Peng et al., "ControlNeXt: Powerful and Efficient Control for Image and Video Generation", 2024: behind the first down
    block x ← x + s · ((c − μ_c) σ_x / σ_c + μ_x); some of the UNet's own weights train with it. The network has 3,526,400
    parameters on SD 1.5. It acts from the first step on, so the model is not the base at step 0.

    Args:
        width: of the stem; 64 in the paper.
        targets: roles of the UNet that train too: the output projections of attention in the authors' SD 1.5 script,
            `cross_proj` alone in that of SDXL; none where empty.
        channels: of the condition. shrink: as of controlnet.
    """

    width: Count = 64
    targets: Sequence[str] = ("proj", "cross_proj")
    channels: Count = 3
    shrink: Count | None = None

    identity: ClassVar[bool] = False
    file: ClassVar[str] = (
        "controlnext.safetensors (the network) and increments.safetensors (changes of the UNet's weights)"
    )
    write = staticmethod(write_light)
    not_mergeable: ClassVar[str | None] = "it reads a condition; `export --format control` writes its files."

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(shrink=1, width=8),)

    def install(self, plan: Plan) -> None:
        if self.width < 8 or self.width % 8:
            raise PeftError(f"controlnext got the width {self.width}: it must be a multiple of 8.")
        options = plan.options_at("conv_in")
        first: Any = plan.model.get_submodule("down_blocks.0.resnets.0")
        with torch.device(options["device"]):
            net = LightNet(first.out_channels, self.width, self.channels, self.shrink or SHRINK).to(options["dtype"])
        root = Light(net)
        root.size = (self.channels, self.shrink or SHRINK)
        plan.join("", "branch", root)
        plan.join("down_blocks.0", "inject", Inject())
        for place, _ in plan.places(self.targets) if self.targets else ():
            module = plan.model.get_submodule(place.module)
            plan.train(place.module, *(name for name, p in module._parameters.items() if p is not None))
