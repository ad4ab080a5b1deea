"""What structured pruning leaves of a model: merged, cut out, and how plain timm loads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from peft_core import dequantise, merge
from peft_core.attach import record_of
from peft_core.parts.selection.cutting import cut_out, sizes


def merged(model: nn.Module) -> Sequence[tuple[int, ...]]:
    """Merges a run's model, and cuts out the heads and channels that its method left at zero; how many each block has now, where
    any went."""
    zeros = any(adaptation.method.leaves_zeros for adaptation in record_of(model).adaptations.values())
    before = sum(p.numel() for p in merge(dequantise(model)).parameters())
    found = cut_out(model) if zeros else {}
    if not any(now < had for now, had in found.values()):
        return ()
    left = sum(p.numel() for p in model.parameters())
    print(f"heads and channels that are zero are cut out: {before:,} parameters became {left:,}")
    return sizes(found)


def how_to_cut(sizes: Sequence[tuple[int, ...]], weights: Path) -> str:
    """Lines behind those that make the whole model: its blocks at their sizes, with the weights."""
    if not sizes:
        return ""
    return (
        f"  for block, (heads, channels) in zip(model.blocks, {[list(each) for each in sizes]}):\n"
        "      attn, mlp, dim, width = block.attn, block.mlp, model.embed_dim, heads * block.attn.head_dim\n"
        "      attn.num_heads, attn.attn_dim = heads, width\n"
        "      attn.qkv = torch.nn.Linear(dim, 3 * width, attn.qkv.bias is not None)\n"
        "      attn.proj = torch.nn.Linear(width, dim, attn.proj.bias is not None)\n"
        "      mlp.fc1, mlp.fc2 = torch.nn.Linear(dim, channels), torch.nn.Linear(channels, dim)\n"
        f"  model.load_state_dict(safetensors.torch.load_file({str(weights)!r}))\n"
    )
