"""Finished runs in use: the same pictures from the run, from its files in stock diffusers, and from the merged pipeline."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

import peft_core
from diffusion_peft.base.loading import quiet_loading
from diffusion_peft.commands.fit import fit
from diffusion_peft.commands.main import main
from diffusion_peft.drawing.draw import Drawing
from diffusion_peft.use.run import Run, combine
from tests.diffusion_peft.conftest import SHORT
from tests.diffusion_peft.files import differs, same

HOW = Drawing(steps=2, guidance=4.0)


@torch.no_grad()
def drawn(pipeline, prompt: str = "a <toy>") -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return pipeline(prompt, num_inference_steps=2, guidance_scale=4.0, generator=generator, output_type="pt").images


def by_run(run: Run, prompt: str = "a <toy>") -> torch.Tensor:
    return drawn(run.base.pipeline(), prompt)


def stock(folder) -> StableDiffusionPipeline:
    with quiet_loading():
        pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def command(line: str) -> None:
    assert main(line.split()) == 0


def test_load_run(lora_run: Path, sd15: str) -> None:
    run = peft_core.load_run(lora_run)
    (row,) = run.sample("a <toy>", count=3, seed=5, how=HOW)
    (two,) = run.sample("a <toy>", count=2, seed=6, how=HOW)
    assert [p.tobytes() for p in row[1:]] == [p.tobytes() for p in two]
    plain = stock(sd15)
    y, base = by_run(run, "a toy"), drawn(plain, "a toy")
    assert differs(y, base)
    run.set_scale(0.0)
    same(by_run(run, "a toy"), base)


def test_sample_draws_what_training_drew(lora_run: Path, tmp_path: Path) -> None:
    """The report's last grid, from the saved adapter."""
    main(
        [
            "sample",
            "--run",
            str(lora_run),
            "--prompt",
            "a <toy>",
            "--count",
            "1",
            "--steps",
            "1",
            "--out",
            str(tmp_path),
        ]
    )
    assert (tmp_path / "00-0.png").read_bytes() == (lora_run / "samples" / "final.png").read_bytes()


def test_merged_pipeline(lora_run: Path, tmp_path: Path) -> None:
    command(f"merge --run {lora_run} --out {tmp_path}/merged")
    pipeline = stock(tmp_path / "merged")
    assert type(pipeline.unet.conv_in) is torch.nn.Conv2d
    same(drawn(pipeline), by_run(peft_core.load_run(lora_run)))
    assert main(["merge", "--run", str(lora_run), "--out", f"{tmp_path}/merged"]) == 2


def test_files_of_a_run_in_stock_diffusers(lora_run: Path, sd15: str, tmp_path: Path) -> None:
    command(f"export --run {lora_run} --format embeddings --out {tmp_path}")
    command(f"export --run {lora_run} --format a1111_embeddings --out {tmp_path}/a1111.safetensors")
    expected = by_run(peft_core.load_run(lora_run))
    for lora, tokens in (("diffusers_lora", "toy.safetensors"), ("kohya", "a1111.safetensors")):
        command(f"export --run {lora_run} --format {lora} --out {tmp_path}/{lora}.safetensors")
        pipeline = stock(sd15)
        token = {"token": "<toy>"} if tokens.startswith("a1111") else {}
        pipeline.load_textual_inversion(str(tmp_path / tokens), **token)
        pipeline.load_lora_weights(str(tmp_path), weight_name=f"{lora}.safetensors")
        same(drawn(pipeline), expected)
        ours = combine([(str(tmp_path / tokens), 1.0), (str(tmp_path / f"{lora}.safetensors"), 1.0)], sd15)
        same(by_run(ours, f"a {next(iter(ours.tokens))}"), expected)


def test_several_adapters_together(lora_run: Path, sd15: str, toys: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    fit(data=toys, base=sd15, prompt="a <cat>", placeholder="<cat>", initializer="t", lr=0.02, seed=1,
        method={"name": "lokr", "rank": 2, "targets": ["mlp"]}, out=str(other), **SHORT | {"sample_count": 0})  # fmt: skip
    both = combine([(str(lora_run), 0.8), (str(other), 0.5)])
    assert both.tokens == {"<toy>": 2, "<cat>": 1}
    y = by_run(both, "a <toy> <cat>")
    assert differs(y, by_run(combine([(str(lora_run), 0.8), (str(other), 0.0)]), "a <toy> <cat>"))
    command(f"merge --adapter {lora_run}:0.8 {other}:0.5 --out {tmp_path}/merged")
    same(drawn(stock(tmp_path / "merged"), "a <toy> <cat>"), y)
    line = f"sample --adapter {lora_run}:0.8 --adapter {other}:0.5 --count 2 --steps 1 --out {tmp_path}/drawn --prompt"
    assert main([*line.split(), "a <toy> <cat>", "a ball"]) == 0
    assert Image.open(tmp_path / "drawn" / "grid.png").size == (2 * 8 + 2, 2 * 8 + 2)


def test_textual_inversion_changes_its_own_rows_alone(sd15: str, toys: str, tmp_path: Path) -> None:
    fit(data=toys, base=sd15, method="textual_inversion", placeholder="<toy>", initializer="ab", vectors=3, weight_decay=0.1,
        lr=0.1, out=str(tmp_path / "run"), **SHORT)  # fmt: skip
    run = peft_core.load_run(tmp_path / "run")
    plain = stock(sd15)
    before = plain.text_encoder.get_input_embeddings().weight
    (vectors,) = run.vectors()["<toy>"]
    ids = plain.tokenizer("ab", add_special_tokens=False).input_ids
    assert vectors.shape == (3, 24) and (vectors != before[[ids[0], ids[1], ids[0]]]).all()
    checkpoint = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    sizes = {
        tuple(value.shape) for state in checkpoint["optimizer_states"][0]["state"].values() for value in state.values()
    }
    assert sizes == {(), (3, 24)}
    command(f"merge --run {tmp_path}/run --out {tmp_path}/merged")
    merged = stock(tmp_path / "merged")
    after = merged.text_encoder.get_input_embeddings().weight
    first = merged.tokenizer.convert_tokens_to_ids("<toy>")
    assert torch.equal(after[first : first + 3], vectors)
    others = [row for row in range(len(before)) if not first <= row < first + 3]
    assert torch.equal(after[others], before[others])
    for name, value in plain.unet.state_dict().items():
        assert torch.equal(merged.unet.state_dict()[name], value)
    same(drawn(merged), by_run(run))
    assert differs(by_run(run), drawn(plain, "a ab"))


def test_sdxl_tokens(sdxl: str, toys: str, tmp_path: Path) -> None:
    fit(data=toys, base=sdxl, method="textual_inversion", placeholder="<toy>", initializer="a", vectors=2, lr=0.1,
        out=str(tmp_path / "run"), **SHORT | {"sample_count": 0})  # fmt: skip
    run = peft_core.load_run(tmp_path / "run")
    command(f"export --run {tmp_path}/run --format embeddings --out {tmp_path}/toy.safetensors")
    file = load_file(tmp_path / "toy.safetensors")
    assert {key: tuple(value.shape) for key, value in file.items()} == {"clip_l": (2, 24), "clip_g": (2, 16)}
    again = combine([(str(tmp_path / "toy.safetensors"), 1.0)], sdxl)
    (one,), (other,) = (r.sample("a <toy>", how=HOW)[0] for r in (run, again))
    assert one.tobytes() == other.tobytes()
