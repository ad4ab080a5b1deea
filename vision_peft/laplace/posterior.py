"""A Gaussian over LoRA's weights: Laplace's approximation with a Kronecker-factored Gauss-Newton matrix.

    θ ~ N(θ*, P⁻¹),  P = H + λ I,  H = ⊕_W  (1/M) Σ_m a_m a_mᵀ ⊗ Σ_m g_m g_mᵀ

for each W of A (r, in) and B (out, r): a are the inputs that W reads at each of M tokens, g the gradients at what it gives of
the columns of Λ^½, where Λ = diag(p) − p pᵀ is the Hessian of the cross-entropy in the logits. λ maximises Laplace's evidence

    log p(D | λ) = log p(D | θ*) − ½ log det P/λ^|θ| − ½ λ ‖θ*‖²,  log det P/λ^|θ| = Σ_W Σ_ij log(1 + s_i t_j / λ),

s and t the factors' eigenvalues, by Adam on log λ. The predictive is that of the model made linear in θ:
logits ~ N(f(x), J P⁻¹ Jᵀ), softmax averaged over draws.

Yang, Robeyns, Wang, Aitchison, "Bayesian Low-rank Adaptation for Large Language Models", ICLR 2024; the low-rank form of wide
factors is theirs, too. As in adamxyang/laplace-lora λ starts at 1 and Adam takes 100 steps of 0.1.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from peft_core.attach import slots_of
from peft_core.errors import PeftError
from peft_core.grafts.weight_changes import watching
from peft_core.parts.lowrank import LowRank
from vision_peft.laplace.factors import Factor

Seen = list[tuple[LowRank, Tensor, Tensor]]
"""A change, the rows (B, T, in) that its layer read, and the layer's output."""


class Posterior:
    """Of a classifier's LoRA weights, in eval mode: `fit`, `choose_prior`, then `logits`.

    Args:
        model: logits B C of a batch.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.changes = [module for module in model.modules() if isinstance(module, LowRank)]
        others = {type(change).__name__ for change in self.changes if type(change) is not LowRank}
        if not self.changes or others:
            raise PeftError(
                "laplace is for plain LoRA weights, A and B of a low-rank change, and this model has "
                f"{'changes of other kinds (' + ', '.join(sorted(others)) + ')' if others else 'none'}."
            )
        for change in self.changes:
            change.requires_grad_(True)
        modules = [(module, slots.values()) for module in model.modules() for slots in slots_of(module).values()]
        convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
        self.convolve = {id(graft) for module, own in modules if isinstance(module, convolutions) for graft in own}
        self.factors = [tuple(Factor(width, change.A) for width in widths_of(change)) for change in self.changes]
        self.tokens = [0] * len(self.changes)
        self.precision = 1.0
        self.bases: list[Any] = []

    def _run(self, x: Tensor) -> tuple[Tensor, Seen]:
        seen: Seen = []
        known = {id(change) for change in self.changes}

        def see(change: Any, rows: Tensor, y: Tensor) -> None:
            if id(change) in known:
                seen.append((change, rows.detach().reshape(len(x), -1, rows.shape[-1]), y))

        with torch.enable_grad(), watching(see):
            logits = self.model(x)
        if len(seen) != len(self.changes):
            raise PeftError("laplace needs each changed layer to run once a forward, which this model's do not.")
        order = {id(change): at for at, change in enumerate(self.changes)}
        return logits, sorted(seen, key=lambda one: order[id(one[0])])

    def _gradients(self, logits: Tensor, seen: Seen, ahead: Tensor, last: bool) -> list[tuple[Tensor, Tensor]]:
        """Of Σ `ahead` · logits, at what A and at what B gives, (B, T, r) and (B, T, out), of each change."""
        found = torch.autograd.grad(logits, [y for *_, y in seen], ahead, retain_graph=not last)
        pairs = []
        for (change, rows, _), gradient in zip(seen, found, strict=True):
            g = gradient.flatten(2).transpose(1, 2) if id(change) in self.convolve else gradient
            g = g.reshape(*rows.shape[:2], -1)
            g = (g if change.rows is None else g[..., slice(*change.rows)]) * change.scale
            pairs.append((g @ change.B.detach().to(g.dtype), g))
        return pairs

    def fit(self, batches: Iterable[Tensor]) -> None:
        """Sums the factors over the training inputs."""
        for x in batches:
            logits, seen = self._run(x)
            p = logits.detach().float().softmax(-1)
            for at, (change, rows, _) in enumerate(seen):
                self.factors[at][0].add(rows)
                self.factors[at][2].add(rows @ change.A.detach().t().to(rows.dtype))
                self.tokens[at] += rows.shape[0] * rows.shape[1]
            for c in range(logits.shape[1]):
                column = -p * p[:, c : c + 1].sqrt()
                column[:, c] += p[:, c].sqrt()
                for at, (low, high) in enumerate(
                    self._gradients(logits, seen, column.to(logits.dtype), c + 1 == logits.shape[1])
                ):
                    self.factors[at][1].add(low)
                    self.factors[at][3].add(high)
        if not any(self.tokens):
            raise PeftError("laplace needs training pictures to fit to, and got none.")
        self.bases = []
        for factors, tokens in zip(self.factors, self.tokens, strict=True):
            (u_a, s_a), (u_low, s_low), (u_in, s_in), (u_out, s_out) = (factor.eigen() for factor in factors)
            self.bases.append((((u_low, s_low), (u_a, s_a / tokens)), ((u_out, s_out), (u_in, s_in / tokens))))

    def _curvatures(self) -> Tensor:
        """All eigenvalues of H that are known."""
        return torch.cat([torch.outer(left[1], right[1]).flatten() for pair in self.bases for left, right in pair])

    def evidence(self, log_precision: Tensor) -> Tensor:
        """What of log p(D | λ) depends on λ."""
        values, precision = self._curvatures(), log_precision.exp()
        norm = sum(p.detach().double().square().sum() for change in self.changes for p in (change.A, change.B))
        return -0.5 * (torch.log1p(values / precision).sum() + precision * norm)

    def choose_prior(self, steps: int = 100, lr: float = 0.1) -> float:
        """λ by the evidence."""
        log_precision = torch.zeros((), dtype=torch.float64, device=self.changes[0].A.device, requires_grad=True)
        optimiser = torch.optim.Adam([log_precision], lr=lr)
        for _ in range(steps):
            optimiser.zero_grad()
            (-self.evidence(log_precision)).backward()
            optimiser.step()
        self.precision = log_precision.exp().item()
        return self.precision

    def logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean B C and covariance B C C of the logits under the linear model."""
        logits, seen = self._run(x)
        count = logits.shape[1]
        whole = torch.zeros(len(logits), count, count, dtype=torch.float64, device=logits.device)
        per_class = []
        for c in range(count):
            ahead = torch.zeros_like(logits)
            ahead[:, c] = 1
            per_class.append(self._gradients(logits, seen, ahead, c + 1 == count))
        for at, (change, rows, _) in enumerate(seen):
            inner = rows @ change.A.detach().t().to(rows.dtype)
            for which, read in ((0, rows), (1, inner)):
                jacobian = torch.stack([torch.einsum("bto,bti->boi", pairs[at][which], read) for pairs in per_class], 1)
                (left, s), (right, t) = self.bases[at][which]
                jacobian = jacobian.double()  # B C out in
                whole += torch.einsum("bcoi,bdoi->bcd", jacobian, jacobian)
                known = torch.einsum("ok,bcoi,il->bckl", left, jacobian, right)
                curvature = torch.outer(s, t)
                whole -= torch.einsum("bckl,kl,bdkl->bcd", known, curvature / (curvature + self.precision), known)
        return logits.detach().double(), whole / self.precision


def widths_of(change: LowRank) -> tuple[int, int, int, int]:
    """Of what A reads and gives, and of what B reads and gives."""
    return change.A.shape[1], len(change.A), change.B.shape[1], len(change.B)


def probabilities(mean: Tensor, covariance: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """E softmax of N(mean, covariance): B C, over so many draws."""
    jitter = 1e-10 * (1 + covariance.diagonal(dim1=1, dim2=2).amax(1))
    eye = torch.eye(mean.shape[1], dtype=mean.dtype, device=mean.device)
    root = torch.linalg.cholesky(covariance + jitter[:, None, None] * eye)
    noise = torch.randn(draws, *mean.shape, generator=generator, dtype=mean.dtype).to(mean.device)
    return (mean + torch.einsum("bcd,nbd->nbc", root, noise)).softmax(-1).mean(0)
