"""Custom Diffusion's algebra: concepts that were trained apart joined in closed form, and a change compressed by SVD.

Kumari et al., "Multi-Concept Customization of Text-to-Image Diffusion", CVPR 2023, sections 3.2 and 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from diffusion_peft.files.layers import Layer
from diffusion_peft.files.whole import nearest
from peft_core.errors import PeftError


def join(weight: Tensor, concepts: Sequence[tuple[Tensor, Tensor]], regular: Tensor, ridge: float = 1e-6) -> Tensor:
    """Ŵ = argmin ‖(Ŵ − W) C_regᵀ‖² such that Ŵ c = W_i c for every text feature c of every concept i.

    Ŵ = W + R (C G⁻¹ Cᵀ)⁺ C G⁻¹ with G = C_regᵀ C_reg, C the features of all concepts below each other (S D) and
    R = [(W_i − W) C_iᵀ] (out S).

    Args:
        weight: W of the base, out D.
        concepts: (W_i, C_i): a concept's weight out D, and text features S_i D of its words.
        regular: C_reg, text features N D of ordinary captions.
        ridge: added to G's diagonal, as a share of its mean.

    Returns: Ŵ in the precision of `weight`; computed in float64.
    """
    base, plain = weight.double(), regular.double()
    features = torch.cat([each.double() for _, each in concepts])
    wanted = torch.cat([(own.double() - base) @ each.double().T for own, each in concepts], dim=1)
    gram = plain.T @ plain
    gram.diagonal().add_(ridge * gram.diagonal().mean())
    spread = torch.linalg.solve(gram, features.T).T  # C G⁻¹, S D
    return (base + wanted @ torch.linalg.pinv(spread @ features.T, rtol=1e-10, hermitian=True) @ spread).to(
        weight.dtype
    )


def compress(before: Mapping[str, Tensor], after: Mapping[str, Tensor], share: float) -> dict[str, Layer]:
    """Each change W' − W as a LoRA layer that keeps the largest singular values, up to `share` of their sum.

    Args:
        before, after: weights by their stock names (`….to_k.weight`).
        share: above 0, at most 1; 0.6 in the paper.

    Raises:
        PeftError: a share out of its range.
    """
    changes = {key: after[key].double() - before[key].double() for key in after}
    layers = {key.removesuffix(".weight"): nearest(change, share)[0] for key, change in changes.items() if change.any()}
    if not layers:
        raise PeftError("this change is zero: train it first.")
    return layers
