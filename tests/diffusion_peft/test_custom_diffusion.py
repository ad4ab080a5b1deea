"""Custom Diffusion: what trains, its files in stock diffusers, the closed-form join and the SVD compression."""

import json
from pathlib import Path

import pytest
import torch

import peft_core
from diffusion_peft.commands.fit import fit
from diffusion_peft.commands.main import main
from diffusion_peft.personalize.concepts import compress, join
from peft_core.errors import PeftError
from tests.diffusion_peft.conftest import SHORT, draw_pictures
from tests.diffusion_peft.files import differs, same
from tests.diffusion_peft.test_use import by_run, command, drawn, stock


@pytest.fixture(scope="module")
def run(sd15: str, toys: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two concepts of a list file, trained together."""
    folder = tmp_path_factory.mktemp("concepts")
    draw_pictures(folder / "cats", [(16, 16)], seed=4)
    rows = [{"data": toys, "placeholder": "<toy>", "initializer": "a"},
            {"data": "cats", "placeholder": "<cat>", "initializer": "b", "prompt": "one <cat>"}]  # fmt: skip
    (folder / "list.json").write_text(json.dumps(rows))
    fit(data=str(folder / "list.json"), base=sd15, method="custom_diffusion", lr=0.01, out=str(folder / "run"), **SHORT)
    return folder / "run"


def test_keys_and_values_of_cross_attention_train(run: Path, sd15: str) -> None:
    loaded, plain = peft_core.load_run(run), stock(sd15)
    assert loaded.tokens == {"<toy>": 1, "<cat>": 1}
    parameters = dict(loaded.unet.named_parameters())
    changed = {key for key, value in plain.unet.named_parameters() if not torch.equal(parameters[key], value)}
    attn2 = {key for key in parameters if key.endswith(("attn2.to_k.weight", "attn2.to_v.weight"))}
    assert changed == attn2


def test_weights_file_in_stock_diffusers(run: Path, sd15: str, tmp_path: Path) -> None:
    command(f"export --run {run} --format custom_diffusion --out {tmp_path}")
    command(f"export --run {run} --format embeddings --out {tmp_path}")
    pipeline = stock(sd15)
    pipeline.unet.load_attn_procs(
        tmp_path, weight_name="pytorch_custom_diffusion_weights.safetensors", _pipeline=pipeline
    )
    for name in ("toy", "cat"):
        pipeline.load_textual_inversion(str(tmp_path / f"{name}.safetensors"))
    y = drawn(pipeline, "a <toy> <cat>")
    assert differs(y, drawn(stock(sd15), "a a b"))
    same(y, by_run(peft_core.load_run(run), "a <toy> <cat>"))
    line = f"sample --base {sd15} --adapter {tmp_path}/pytorch_custom_diffusion_weights.safetensors --count 1 --steps 1"
    assert main([*line.split(), "--prompt", "a b", "--out", str(tmp_path / "theirs")]) == 0
    assert main([*f"sample --run {run} --count 1 --steps 1 --out {tmp_path}/ours".split(), "--prompt", "a b"]) == 0
    assert (tmp_path / "theirs" / "00-0.png").read_bytes() == (tmp_path / "ours" / "00-0.png").read_bytes()


def test_joined_weights_meet_every_concept() -> None:
    torch.manual_seed(0)
    weight, regular = torch.randn(6, 8), torch.randn(50, 8)
    concepts = [(weight + torch.randn(6, 8), torch.randn(2, 8)), (weight + torch.randn(6, 8), torch.randn(1, 8))]
    joined = join(weight, concepts, regular)
    for own, features in concepts:
        torch.testing.assert_close(joined @ features.T, own @ features.T, rtol=1e-3, atol=1e-4)
    cost = ((joined - weight) @ regular.T).square().sum()
    features = torch.cat([each for _, each in concepts])
    free = torch.linalg.qr(features.T, mode="complete").Q[:, 3:]  # directions that no concept's word sees
    for _ in range(20):
        other = joined + 0.1 * torch.randn(6, 5) @ free.T
        assert ((other - weight) @ regular.T).square().sum() > cost


def test_runs_joined_in_closed_form(run: Path, sd15: str, tmp_path: Path) -> None:
    data = draw_pictures(tmp_path / "dogs", [(16, 16)], seed=9)
    fit(data=data, base=sd15, method="custom_diffusion", placeholder="<dog>", initializer="c", lr=0.01, seed=2,
        out=str(tmp_path / "dog"), **SHORT | {"sample_count": 0})  # fmt: skip
    command(f"join --run {run} {tmp_path}/dog --out {tmp_path}/joined")
    pipeline = stock(tmp_path / "joined")
    assert {"<toy>", "<cat>", "<dog>"} <= set(pipeline.tokenizer.get_added_vocab())
    assert differs(drawn(pipeline, "<toy> <dog>"), drawn(stock(sd15), "a c"))
    assert main(["sample", "--adapter", str(run), f"{tmp_path}/dog", "--prompt", "a", "--out", str(tmp_path)]) == 2


def test_compression_keeps_the_largest_part(run: Path, sd15: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    before = {"a.to_k.weight": torch.randn(6, 8)}
    change = (
        torch.linalg.qr(torch.randn(6, 3)).Q
        @ torch.diag(torch.tensor([5.0, 3.0, 2.0]))
        @ torch.linalg.qr(torch.randn(8, 3)).Q.T
    )
    after = {"a.to_k.weight": before["a.to_k.weight"] + change}
    for share, rank in ((0.4, 1), (0.6, 2), (0.79, 2), (0.9, 3)):
        layer = compress(before, after, share)["a.to_k"]
        assert layer.rank == rank
        rest = change - layer.tensors["B"] @ layer.tensors["A"]
        assert rest.norm().item() == pytest.approx([0, 13**0.5, 2.0, 0.0][rank], abs=1e-4)
    with pytest.raises(PeftError, match="must be above 0"):
        compress(before, after, 0.0)
    command(f"export --run {run} --format kohya --compress 1.0 --out {tmp_path}/small.safetensors")
    pipeline = stock(sd15)
    pipeline.load_lora_weights(str(tmp_path), weight_name="small.safetensors")
    y = by_run(peft_core.load_run(run), "a ball")
    assert differs(y, drawn(stock(sd15), "a ball"))
    torch.testing.assert_close(drawn(pipeline, "a ball"), y, rtol=0, atol=1e-4)
