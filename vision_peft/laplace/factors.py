"""Kronecker factors of a Gauss-Newton matrix: sums of row products, whole where they are small, low-rank where large."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

WHOLE, RANK = 100, 10
"""The widest factor that is kept whole, and the rank of a wider one (MaximeRobeyns/bayesian_lora has the same figures)."""


class Factor:
    """Σ rowsᵀ rows, of rows (N, D) that come in batches, as eigenvectors (D, k) and eigenvalues (k).

    A factor wider than `WHOLE` keeps Σ rowsᵀ (rows Ω) for a fixed Gaussian Ω (D, 3 · RANK) alone; its eigenvectors are those
    of the Nyström approximation Y (Ωᵀ Y)⁻¹ Yᵀ, exact where the sum has no higher rank than that, and the first RANK stay.
    """

    def __init__(self, width: int, like: Tensor):
        options: dict[str, Any] = dict(device=like.device, dtype=torch.float64)
        self.probe = None
        if width > WHOLE:
            generator = torch.Generator().manual_seed(0)
            self.probe = torch.randn(width, 3 * RANK, generator=generator, dtype=torch.float64).to(like.device)
        self.sum = torch.zeros(width, width if self.probe is None else 3 * RANK, **options)

    def add(self, rows: Tensor) -> None:
        rows = rows.reshape(-1, rows.shape[-1])
        if self.probe is None:
            self.sum += (rows.t() @ rows).double()
        else:
            self.sum += (rows.t() @ (rows @ self.probe.to(rows.dtype))).double()

    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvectors (D, k) as columns and eigenvalues (k), none below zero."""
        if self.probe is None:
            values, vectors = torch.linalg.eigh(self.sum)
            return vectors, values.clamp_min(0)
        # Y C⁻ᵀ has the singular vectors of the approximation, and the roots of its values, with Ωᵀ Y = C Cᵀ
        middle = self.probe.t() @ self.sum
        values, vectors = torch.linalg.eigh((middle + middle.t()) / 2)
        kept = values > values.max().clamp_min(1e-300) * 1e-10
        root = self.sum @ (vectors[:, kept] / values[kept].sqrt())
        left, singular, _ = torch.linalg.svd(root, full_matrices=False)
        return left[:, :RANK], singular[:RANK].square()
