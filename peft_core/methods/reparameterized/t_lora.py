from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_core import lifecycle
from peft_core.errors import PeftError
from peft_core.grafts.calls import state
from peft_core.grafts.graft import Call, Delta, argument, match
from peft_core.method import Method, Plan
from peft_core.parts.factors import add_scaled, new_parameter, rows_of
from peft_core.parts.ranked import Ranked
from peft_core.parts.starts import moved
from peft_core.values import Count, NotNegative, Positive, Widths


class Time(Call):
    """Keeps the diffusion time of a model's call, a number or one a sample, where its layers find it: in the state of the
    forward, and, for blocks that run again in the backward under checkpointing, that of the last call that trains."""

    last: Any = None

    def named(self, adaptation: str, path: str, slot: str) -> None:
        self.key = f"{adaptation}/time"

    def call(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        time = state()[self.key] = argument(module, args, kwargs, "timestep")
        self.last = time if self.training and torch.is_grad_enabled() else None
        return args, kwargs


class Timed(Delta):
    """y = W x + s·(P (λ ⊙ m_t ⊙ Q x) − P₀ (λ₀ ⊙ m_t ⊙ Q₀ x)): Q (r, in) is A, P (out, r) is B; m_t (r) has r(t) ones, then zeros.

    It runs with factors (λ Q; λ Q − λ₀ Q₀) and (P − P₀, P₀), both of whose products are zero to the last bit at the start.
    """

    additive = True
    needs_matrix = True
    reads_input = True
    key = ""

    def __init__(
        self, weight: Tensor, rows: tuple[int, int] | None, rank: int, scale: float, method: "TLoRA", clock: Time
    ):
        super().__init__(rows)
        self.clock = (clock,)  # no submodule of two
        self.scale, self.least, self.power, self.last = scale, method.min_rank, method.power, method.timesteps
        self.A, self.B = (
            new_parameter(weight, rank, weight[0].numel()),
            new_parameter(weight, rows_of(weight, rows), rank),
        )
        self.E = new_parameter(weight, rank)
        with torch.no_grad():
            # of a Gaussian matrix, whose singular vectors are uniform and do not depend on its values
            for frame in (self.A.t(), self.B):
                frame.copy_(torch.linalg.qr(torch.randn_like(frame, memory_format=torch.contiguous_format))[0])
            values = torch.linalg.svdvals(torch.randn(len(self.B), self.A.shape[1], device=weight.device) / rank)
            start = {"principal": 0, "middle": (len(values) - rank) // 2, "last": len(values) - rank}[method.sig_type]
            self.E.copy_(values[start : start + rank])
        for name in ("A", "B", "E"):
            self.register_buffer(f"{name}0", getattr(self, name).detach().clone())

    def named(self, adaptation: str, path: str, slot: str) -> None:
        self.key = f"{adaptation}/time"

    @classmethod
    def accepts(cls, module: nn.Module, weight: Tensor, rows: tuple[int, int] | None) -> str | None:
        if getattr(module, "groups", 1) > 1:
            return "a grouped convolution has no one product that could be masked"
        return super().accepts(module, weight, rows)

    def factors(self) -> tuple[Tensor, Tensor]:
        start: Any = self
        return moved(self.A * self.E[:, None], self.B, start.A0 * start.E0[:, None], start.B0)

    def mask(self, inner: Tensor) -> Tensor | None:
        """m_t, (1 or B, 2r), for what the first factor gives; None where nobody said the time."""
        time = state().get(self.key, self.clock[0].last)
        if time is None:
            return None
        time = torch.as_tensor(time, device=inner.device).reshape(-1).double()
        if len(inner) % len(time):
            raise PeftError(f"t_lora got {len(time)} times for a layer that reads {len(inner)} samples.")
        rank = len(self.E)
        share = ((self.last - time) / self.last).clamp(0, 1) ** self.power
        active = torch.floor(share * (rank - self.least)) + self.least
        on = torch.arange(rank, device=inner.device) < active[:, None]
        on = on if len(time) == 1 else on.repeat_interleave(len(inner) // len(time), 0)
        return torch.cat((on, on), 1).to(inner.dtype)

    def forward(self, weight: Tensor) -> Tensor:
        down, up = self.factors()
        return add_scaled(weight, up @ down, self.scale)

    def on_input(self, x: Tensor, run) -> Tensor:
        down, up = self.factors()
        inner = run(match(x, down), down)
        convolves = x.dim() == 4 and run is not F.linear
        inner = inner.movedim(1, -1) if convolves else inner
        if (mask := self.mask(inner)) is not None:
            inner = inner * mask.view(len(mask), *[1] * (inner.dim() - 2), -1)
        y = F.linear(inner, up * (self.scale * self.factor))
        return y.movedim(-1, 1) if convolves else y


@dataclass(frozen=True, kw_only=True)
class TLoRA(Ranked):
    """T-LoRA: a low-rank change of a diffusion model whose rank falls with the noise, against learning one picture by heart.

        y = W x + s·(P diag(λ ⊙ m_t) Q x − P₀ diag(λ₀ ⊙ m_t) Q₀ x),    r(t) = ⌊((T − t)/T)^a (r − r_min)⌋ + r_min

    Soboleva et al., "T-LoRA: Single Image Diffusion Model Customization Without Overfitting", AAAI 2026. m_t lets the first r(t)
    of the components act, in training and in sampling. Q (rank, in), λ (rank) and P (out, rank) start as singular vectors
    and values of a random N(0, 1/rank²) matrix, which are taken off again: identity at step 0. The authors take the last ones;
    the vectors are drawn here by themselves (QR), which is the same law, and the values from the matrix. Their settings: SDXL
    rank 64, min_rank 32; FLUX 32 and 1. Rank 64 on attention: 12,763,136 parameters on the SD 1.5 UNet.

    Args:
        rank: r, at t = 0; one rank, or one a block where 0 means absent.
        alpha: s = alpha/rank; 1 where it is None.
        targets: roles or groups.
        rs: rank-stabilised scale.
        min_rank: r_min, at t = T.
        power: a.
        timesteps: T.
        sig_type: which of the singular values λ starts with.
        orthogonal: weight of ‖PᵀP − I‖² + ‖QQᵀ − I‖² in the loss, as the paper's option.
    """

    rank: Widths = 64
    min_rank: Count = 32
    power: Positive = 1.0
    timesteps: Count = 1000
    sig_type: Literal["principal", "middle", "last"] = "last"
    orthogonal: NotNegative = 0.0
    suits: ClassVar[tuple[str, ...]] = ("diffusers UNet", "diffusers MMDiT")
    not_mergeable: ClassVar[str | None] = "its rank depends on the time of each call."

    @classmethod
    def examples(cls) -> Iterable[Method]:
        return (cls(rank=3, min_rank=1, alpha=4.0, targets=("attn",), timesteps=100, orthogonal=0.1),)

    def install(self, plan: Plan) -> None:
        clock = Time()
        plan.join("", "time", clock)
        for place, rank in plan.places(self.targets, self.rank, Timed):
            if rank < self.min_rank:
                raise PeftError(f"t_lora got min_rank {self.min_rank}, above the rank {rank} at {place.module}.")
            plan.change_weight(place, Timed(plan.stock(place), place.rows, rank, self.scale(rank), self, clock))

    def penalty(self, model: nn.Module) -> Tensor | float:
        if not self.orthogonal:
            return 0.0
        total: Any = 0.0
        for change in lifecycle.own_grafts(model, self, Timed):
            eye = torch.eye(len(change.E), device=change.E.device, dtype=change.E.dtype)
            with torch.autocast(change.E.device.type, enabled=False):
                products = change.A @ change.A.t(), change.B.t() @ change.B
            total = total + sum((product - eye).square().sum() for product in products)
        return self.orthogonal * total
