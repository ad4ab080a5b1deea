"""GaLore: Adam's moments in a low-rank subspace of each matrix's gradient."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from peft_core.errors import PeftError


class GaLore(torch.optim.Optimizer):
    """W ← W − lr · scale · P Adam(Pᵀ G), P the first `rank` singular vectors of G on its smaller side, anew every `gap` steps.

    Zhao et al., "GaLore: Memory-Efficient LLM Training by Gradient Low-Rank Projection", ICML 2024; jiaweizzhao/GaLore
    (2cc66f8), projection `std`: of G m n with m ≥ n it is R = G Pᵀ (m, r) with P (r, n), else R = Pᵀ G (r, n).
    The moments are kept as they are when P changes; the decomposition is in float32. Rank 4, scale 4 and gap 500 are those of its
    fine-tuning (lr 3e-5, batch 16, 30 epochs); pre-training has rank 128 to 1024, scale 0.25, gap 200, lr 0.005 to 0.01. Weight
    decay is AdamW's, after the step.

    Vectors, matrices with a side not above the rank, and groups with `rank` 0 take Adam's own step, as there all but the linears
    of attention and MLP do. A convolution is projected as the matrix (out, in · kh · kw); there it is by a Tucker decomposition,
    whose way back leaves Adam's moments out.

    Args:
        params: tensors, or groups, which may have `rank`, `gap` and `scale` of their own.
    """

    def __init__(
        self, params: Iterable[Any], lr: float = 3e-5, rank: int = 4, gap: int = 500, scale: float = 4.0,
        betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6, weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        if rank < 0 or gap < 1:
            raise PeftError(
                f"GaLore takes a rank of 0 (none) or more and a gap of 1 step or more, not {rank} and {gap}."
            )
        defaults = dict(lr=lr, rank=rank, gap=gap, scale=scale, betas=betas, eps=eps, weight_decay=weight_decay)
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, group)
        return loss

    def _step(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        step = int(state.get("step", 0))
        if parameter.dim() > 1:
            gradient = gradient.flatten(1)
        low = parameter.dim() > 1 and 0 < group["rank"] < min(gradient.shape)
        if low and step % group["gap"] == 0:
            state["basis"] = _basis(gradient, group["rank"])
        wide = len(gradient) < gradient.shape[-1]
        if low:
            gradient = state["basis"].T @ gradient if wide else gradient @ state["basis"].T
        if not step:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
        state["step"] = torch.tensor(float(step + 1))
        (one, two), first, second = group["betas"], state["exp_avg"], state["exp_avg_sq"]
        first.mul_(one).add_(gradient, alpha=1 - one)
        second.mul_(two).addcmul_(gradient, gradient, value=1 - two)
        size = group["lr"] * math.sqrt(1 - two ** (step + 1)) / (1 - one ** (step + 1))
        change = first / second.sqrt().add_(group["eps"])
        if low:
            change = (state["basis"] @ change if wide else change @ state["basis"]) * group["scale"]
        parameter.add_(change.view_as(parameter), alpha=-size)
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])


def _basis(gradient: Tensor, rank: int) -> Tensor:
    """The first singular vectors of the smaller side: (r, n) of m n with m ≥ n, else (m, r)."""
    left, _, right = torch.linalg.svd(gradient.float(), full_matrices=False)
    chosen = left[:, :rank] if gradient.shape[0] < gradient.shape[1] else right[:rank]
    return chosen.to(gradient.dtype, copy=True).contiguous()
