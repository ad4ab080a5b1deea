from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from diffusion_peft.control.branch import Control, add_residuals
from diffusion_peft.control.encoders import SHRINK, empty_copy, new_parts, openness, own_copy, run_encoder
from diffusion_peft.control.files import write_model
from diffusion_peft.control.method import ControlMethod
from diffusion_peft.control.transformers import beside
from peft_core.errors import PeftError
from peft_core.grafts.calls import state
from peft_core.grafts.graft import Call, Graft
from peft_core.method import Method, Plan
from peft_core.values import Count, NotNegative


class Residuals(Control):
    """An encoder `net`, whose residuals go onto the UNet's skip connections and its middle."""

    net: Any

    def residuals(self, condition: dict[str, Tensor], given: dict[str, Any]) -> tuple[list[Tensor], Tensor]:
        return run_encoder(self.net, condition["picture"], given)

    def join(self, prepared: Any, given: dict[str, Any]) -> dict[str, Any]:
        down, mid = self.residuals(prepared, given)
        if self.factor != 1.0:
            down, mid = [each * self.factor for each in down], mid * self.factor
        return added(given, down, mid)

    def effect(self) -> float:
        return openness(self.net)


def added(given: dict[str, Any], down: list[Tensor], mid: Tensor) -> dict[str, Any]:
    """The UNet's arguments for residuals, on top of those that it has already."""
    keys = "down_block_additional_residuals", "mid_block_additional_residual"
    known = given.get(keys[1])
    return {keys[0]: add_residuals(given, keys[0], down), keys[1]: mid if known is None else known + mid}


class Encoder(Residuals):
    """The copied encoder."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net


class NormedEncoder(Encoder):
    """The residuals wait until the UNet's own features are known, whose mean and deviation they take."""

    def __init__(self, net: nn.Module, strength: float) -> None:
        super().__init__(net)
        self.strength = strength

    def join(self, prepared: Any, given: dict[str, Any]) -> dict[str, Any]:
        down, mid = self.residuals(prepared, given)
        state()[self.key, "waiting"] = [*down, mid]
        return {}

    def next(self, y: Tensor) -> Tensor:
        """y with the last of the residuals that wait, brought to y's mean and deviation."""
        waiting = state().get((self.key, "waiting"))
        if not waiting:
            return y
        return y + cross_normalise(waiting.pop(), y) * (self.strength * self.factor)


class AtMiddle(Graft):
    owner: NormedEncoder

    def __init__(self, owner: NormedEncoder) -> None:
        super().__init__()
        self.__dict__["owner"] = owner

    def after(self, y: Tensor) -> Tensor:
        return self.owner.next(y)


class AtSkips(Call):
    """An up block's skip connections, the last of which the encoder made last."""

    owner: NormedEncoder

    def __init__(self, owner: NormedEncoder) -> None:
        super().__init__()
        self.__dict__["owner"] = owner

    def call(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        key = "res_hidden_states_tuple"
        return args, kwargs | {key: tuple(self.owner.next(y) for y in reversed(kwargs[key]))[::-1]}


def cross_normalise(c: Tensor, x: Tensor) -> Tensor:
    """c' = (c − μ_c) · σ_x / σ_c + μ_x with mean and deviation over C H W of each picture."""
    axes = (1, 2, 3)
    mean_c, mean_x = c.mean(axes, keepdim=True), x.mean(axes, keepdim=True)
    ratio = x.std(axes, keepdim=True) / (c.std(axes, keepdim=True) + 1e-12)
    return ((c - mean_c) * ratio + mean_x).to(x.dtype)


@dataclass(frozen=True, kw_only=True)
class ControlNet(ControlMethod):
    """ControlNet: a trained copy of the UNet's encoder, joined to the frozen one by zero convolutions.

    Zhang et al., "Adding Conditional Control to Text-to-Image Diffusion Models", ICCV 2023:
    y = F(x; Θ) + Z(F(x + Z(c; Θz1); Θc); Θz2). Conv_in, time embedding, down blocks and middle are copied; 1 × 1
    convolutions that start at zero add each result to a skip connection (12 and the middle on SD 1.5), and a small
    convolutional encoder brings the condition to the latents' size. 361,279,120 parameters on SD 1.5, 1,251,014,160 on
    SDXL. No gradient flows into the UNet's own encoder.

    Of Stable Diffusion 3 and Flux.1 the first blocks are copied (12; 4 with two streams and 4 with one), and linears that start
    at zero add what they give to the transformer's own, as diffusers' scripts have it; the condition comes through the VAE.

    Args:
        join: `zero` as in the paper; `norm` adds residuals of ordinary convolutions that take mean and deviation of the
            features they are added to (ControlNeXt's cross normalisation), so the branch acts from the first step on.
        strength: size of such residuals.
        channels: of the condition.
        shrink: the VAE's pixels a latent along each side; `fit` takes the base's, 8 elsewhere.
        layers, single_layers: how many of a transformer's blocks are copied; the scripts' where None.
    """

    join: Literal["zero", "norm"] = "zero"
    strength: NotNegative = 0.2
    channels: Count = 3
    shrink: Count | None = None
    layers: Count | None = None
    single_layers: Count | None = None

    suits: ClassVar[tuple[str, ...]] = ("diffusers UNet", "diffusers MMDiT", "diffusers DiT")
    transformers: ClassVar[tuple[str, ...]] = ("sd3", "flux")
    file: ClassVar[str] = "a folder for ControlNetModel.from_pretrained (SD3ControlNetModel, FluxControlNetModel)"
    write = staticmethod(write_model)
    not_mergeable: ClassVar[str | None] = "it reads a condition; `export --format control` writes a ControlNetModel."

    @property
    def identity(self) -> bool:  # type: ignore[override]
        return self.join == "zero"

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return cls(shrink=1), cls(shrink=1, join="norm")

    def install(self, plan: Plan) -> None:
        if plan.anatomy.family != self.suits[0]:
            if self.join != "zero" or self.channels != 3:
                raise PeftError(
                    "controlnet's join norm and other channels than 3 are for UNets: a transformer's condition comes through its "
                    "VAE, and its residuals through zero linears; leave them out."
                )
            plan.join("", "branch", beside(plan.model, self.layers, self.single_layers, plan.options_at("proj_out")))
            return
        if self.layers or self.single_layers:
            raise PeftError("controlnet copies a UNet's encoder as a whole: leave layers and single_layers out.")
        options = plan.options_at("conv_in")
        net: Any = empty_copy(plan.model, self.shrink, self.channels)
        own_copy(plan.model, net, options)
        new_parts(net, options, zero=self.join == "zero")
        owner = NormedEncoder(net, self.strength) if self.join == "norm" else Encoder(net)
        owner.size = (self.channels, self.shrink or SHRINK)
        plan.join("", "branch", owner)
        if not isinstance(owner, NormedEncoder):
            return
        plan.join("mid_block", "joined", AtMiddle(owner))
        for number in range(len(plan.model.up_blocks)):  # type: ignore[arg-type]
            plan.join(f"up_blocks.{number}", "joined", AtSkips(owner))
