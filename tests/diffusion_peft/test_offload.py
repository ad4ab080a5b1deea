"""`--offload blocks`: the numbers of weights in memory, one block of them at a time."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffusion_peft.base.bases import load_base
from diffusion_peft.base.loading import quiet_loading
from diffusion_peft.base.offload import Pages, tensors_of
from diffusion_peft.commands.fit import fit
from diffusion_peft.commands.main import main
from peft_core.errors import PeftError
from tests.diffusion_peft.conftest import SHORT
from tests.diffusion_peft.transformers import pipeline


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases") / "sd3"
    with quiet_loading():
        pipeline("sd3").save_pretrained(folder)
    return folder


def test_a_run_is_the_same_to_the_last_bit(sd3: Path, toys: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = SHORT | {"gradient_checkpointing": True}
    for offload in ("none", "blocks"):
        fit(data=toys, base=str(sd3), method={"name": "lora", "rank": 2}, prompt="a toy", lr=0.05, offload=offload,
            out=str(tmp_path / offload), **settings)  # fmt: skip
    for name in ("adapter/transformer/adapter.safetensors", "metrics.csv", "samples/final.png"):
        assert (tmp_path / "none" / name).read_bytes() == (tmp_path / "blocks" / name).read_bytes(), name
    for offload in ("none", "blocks"):
        line = f"sample --run {tmp_path}/none --prompt toy --count 1 --steps 2 --offload {offload} --out {tmp_path}/d{offload}"
        assert main(line.split()) == 0
    assert (tmp_path / "dnone" / "00-0.png").read_bytes() == (tmp_path / "dblocks" / "00-0.png").read_bytes()


@pytest.mark.parametrize("kind", ["flux", "z_image", "pixart"])
def test_models_are_those_of_from_pretrained(kind: str, tmp_path: Path) -> None:
    """In half precision too, buffers included."""
    with quiet_loading():
        pipeline(kind).to(torch.bfloat16).save_pretrained(tmp_path / "base")
    plain, mapped = (
        load_base(str(tmp_path / "base"), "bfloat16", each).part("transformer") for each in ("none", "blocks")
    )
    for one, other in (
        (plain.state_dict(), mapped.state_dict()),
        (dict(plain.named_buffers()), dict(mapped.named_buffers())),
    ):
        assert one.keys() == other.keys()
        assert all(one[key].dtype == other[key].dtype and torch.equal(one[key], other[key]) for key in one)


def test_blocks_are_let_go_of_in_their_order(sd3: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    enter = Pages.enter
    monkeypatch.setattr(Pages, "enter", lambda self, block: (seen.append(block), enter(self, block))[1])
    model = load_base(str(sd3), offload="blocks").part("transformer")
    x = torch.randn(1, 16, 4, 4, requires_grad=True)
    said = model(hidden_states=x, timestep=torch.ones(1), encoder_hidden_states=torch.randn(1, 5, 48),
                 pooled_projections=torch.randn(1, 40)).sample  # fmt: skip
    said.sum().backward()
    blocks = [f"transformer_blocks.{number}" for number in range(2)]
    assert [*dict.fromkeys(seen[:3])] == ["", *blocks] and [*dict.fromkeys(seen[3:])] == blocks[::-1]
    weight = model.get_parameter("transformer_blocks.1.ff.net.0.proj.weight")
    assert torch.equal(weight, load_file(sd3 / "transformer" / "diffusion_pytorch_model.safetensors")[
        "transformer_blocks.1.ff.net.0.proj.weight"])  # fmt: skip
    with torch.no_grad():
        model.get_parameter("transformer_blocks.0.ff.net.0.proj.weight").add_(1)
    with pytest.raises(PeftError, match="weights of transformer_blocks.0 were overwritten"):
        model(hidden_states=x, timestep=torch.ones(1), encoder_hidden_states=torch.randn(1, 5, 48),
              pooled_projections=torch.randn(1, 40))  # fmt: skip


def resident() -> int:
    """Bytes of mapped files that are in memory."""
    return int(re.search(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text(encoding="utf-8"))[1]) * 1024  # type: ignore[index]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_pages_leave_memory(tmp_path: Path) -> None:
    size = 2**23
    save_file({"a": torch.ones(size), "b": torch.ones(size)}, tmp_path / "x.safetensors")
    pages = Pages()
    for name, (tensor, span) in tensors_of(tmp_path / "x.safetensors"):
        pages.add(name, tensor, span)
    before = resident()
    for block in ("a", "b", "a", "b", ""):
        pages.enter(block)
        total = sum(float(weight.sum()) for weight in pages.weights.get(block, ()))
        assert total == (size if block else 0)
        held = resident() - before
        assert held < 1.5 * 4 * size, "one of them at most"
    assert held < 2 * size


def test_what_is_refused(sd3: Path, toys: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = dict(
        data=toys, prompt="a toy", base=str(sd3), offload="blocks", out=str(tmp_path / "run"), **SHORT
    )
    for given, words in (
        ({"method": "full"}, "full trains stock weights .*, which --offload blocks leaves on disk"),
        ({"quantize": "int8"}, "leave --quantize out"),
        ({"compile": True}, "leave --compile out"),
        ({"dtype": "bfloat16"}, "--offload blocks reads weights as they lie in .*, in float32: give --dtype float32"),
    ):  # fmt: skip
        with pytest.raises(PeftError, match=words):
            fit(**{"method": "lora"} | settings | given)
    assert not (tmp_path / "run").exists()
    file = sd3 / "transformer" / "diffusion_pytorch_model.safetensors"
    content = file.read_bytes()
    try:
        file.write_bytes(content[:100])
        with pytest.raises(PeftError, match="cannot be mapped"):
            load_base(str(sd3), offload="blocks").part("transformer")
        file.unlink()
        with pytest.raises(
            PeftError, match="--offload blocks reads .safetensors, and .* has no diffusion_pytorch_model"
        ):
            load_base(str(sd3), offload="blocks").part("transformer")
    finally:
        file.write_bytes(content)
