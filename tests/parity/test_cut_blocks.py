"""Blocks cut as ylsung/Ladder-Side-Tuning's `pruning_without_residual` (1798e82, L1, reduction 4) cuts those of a T5
encoder; the rows that it keeps are put in order, where there they stand as Python orders a set."""

import torch

from peft_core.parts.cut_blocks import Layer, cut, most
from tests.parity.golden import golden, values

THERE = {
    "norm1": "0.layer_norm", "q": "0.SelfAttention.q", "k": "0.SelfAttention.k", "v": "0.SelfAttention.v",
    "proj": "0.SelfAttention.o", "norm2": "1.layer_norm", "fc1": "1.DenseReluDense.wi", "fc2": "1.DenseReluDense.wo",
}  # fmt: skip
SIZES = {"norm1": (16,), "norm2": (16,), "fc1": (32, 16), "fc2": (16, 32)}


def test_cut() -> None:
    blocks = []
    for number in range(2):
        names = {role: f"encoder.block.{number}.layer.{there}.weight" for role, there in THERE.items()}
        sizes = {role: SIZES.get(role, (16, 16)) for role in THERE}
        blocks.append(
            {
                role: Layer(values(name, sizes[role]), None, values(f"score.{name}", sizes[role]).square())
                for role, name in names.items()
            }
        )
    embedding = values("score.shared.weight", (20, 16)).square()
    wanted = golden("lst_cut")
    for number, block in enumerate(cut(blocks, most(embedding.T, 4), 4, 8)):
        for role, layer in block.items():
            assert torch.equal(layer.weight, wanted[f"encoder.block.{number}.layer.{THERE[role]}.weight"]), (
                number,
                role,
            )
