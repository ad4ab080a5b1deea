"""Runs beside a UNet of few bits."""

from pathlib import Path
from typing import Any

from diffusion_peft.commands.fit import fit
from diffusion_peft.commands.merge import merge_
from diffusion_peft.use.run import combine
from peft_core.kernels.quantised import packed_of
from tests.diffusion_peft.conftest import SHORT


def test_a_run_beside_a_quantised_unet(sd15: str, toys: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    fit(
        data=toys, base=sd15, prompt="a toy", quantize="int4", method={"name": "lora", "rank": 2}, out=str(out), **SHORT
    )
    unet: Any = combine([(str(out), 1.0)]).unet
    block = unet.down_blocks[0].attentions[0]
    assert packed_of(block.transformer_blocks[0].attn1.to_q) is not None and type(unet.conv_in).__name__ == "Conv2d"
    merge_(run=str(out), out=str(tmp_path / "merged"))
    merged: Any = combine([], base=str(tmp_path / "merged")).unet
    assert packed_of(merged.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q) is None
