"""Several adapters at sampling: by turns and each by itself as in stock diffusers, K-LoRA's choices as its authors' code makes
them (HVision-NKU/K-LoRA 893d0f9, klora.py and utils.py, run elsewhere), B-LoRA's halves."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from diffusion_peft.base.loading import quiet_loading
from diffusion_peft.commands.export import export
from diffusion_peft.commands.main import main
from diffusion_peft.commands.merge import merge_
from diffusion_peft.drawing.composing import KLoRA
from diffusion_peft.drawing.draw import Drawing
from diffusion_peft.files.layers import Layer
from diffusion_peft.formats import export_adapter
from diffusion_peft.use.composed import composition_of
from diffusion_peft.use.run import Run, combine
from peft_core import PeftError, adapt
from tests.diffusion_peft.pipelines import stable_diffusion, train
from tests.diffusion_peft.test_counts import inserted, unet
from tests.parity.golden import golden, values

SHAPES = {"one": (10, 8, 2, 3), "two": (6, 10, 3, 2), "three": (8, 8, 2, 2), "four": (8, 6, 4, 4)}
SIZES = {"one": 1.0, "two": 0.6, "three": 1.6, "four": 20.0}
HOW = Drawing(steps=4, guidance=4.0)


def test_k_lora_chooses_as_its_authors_code() -> None:
    wanted = golden("k_lora")
    content, style = (
        {
            name: Layer("lora", {"A": values(f"{who}.{name}.A", (r, wide)) * (SIZES[name] if who == "c" else 1),
                                 "B": values(f"{who}.{name}.B", (out, r))})
            for name, (out, wide, *ranks) in SHAPES.items()
            for r in [ranks[who == "s"]]
        }
        for who in "cs"
    )  # fmt: skip
    for way, key in (("k_lora", "s"), ("k_lora_star", "star")):
        chooser = KLoRA(nn.Module(), [], [content, style], way, 12)
        assert chooser.balance == pytest.approx(float(wanted["ratio"]), rel=1e-6)
        found = [[next(iter(chooser.chosen(name, step))) for step in range(12)] for name in SHAPES]
        assert found == wanted[f"chosen.{key}"].tolist()
        assert {0, 1} == set(sum(found, []))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two LoRA files, of which one changes convolutions too."""
    folder, found = tmp_path_factory.mktemp("files"), []
    for number, targets in enumerate((("attn", "cross_attn"), ("attn", "conv"))):
        model: Any = stable_diffusion("sd15").unet
        adapt(model, "lora", rank=2 + number, alpha=4.0, targets=targets)
        train(model, seed=number)
        found.append(str(export_adapter(model, None, folder / f"{number}.safetensors", "diffusers_lora")))
    return found


def ours(base: str, files: list[str], way: Any, every: int = 1) -> tuple[Run, np.ndarray]:
    run = combine([(files[0], 0.8), (files[1], 1.2)], base)
    ((picture,),) = run.sample("a cat", how=HOW, way=way, every=every)
    return run, np.asarray(picture).astype(int)


@torch.no_grad()
@pytest.mark.parametrize("way", ["switch", "composite"])
def test_as_in_stock_diffusers(way: str, sd15: str, two: list[str]) -> None:
    """As maszhongming/Multi-LoRA-Composition cac122a has it: adapters set in a callback after each step, or for each pass."""
    stock = stable_diffusion("sd15")
    names, scales = ("one", "other"), (0.8, 1.2)
    with quiet_loading():
        for name, file in zip(names, two, strict=True):
            stock.load_lora_weights(file, adapter_name=name)

    def only(number: int) -> None:
        stock.set_adapters(names[number], scales[number])

    def after(pipe: Any, index: int, time: Any, values: dict) -> dict:
        if way == "switch":
            only((index + 1) // 1 % 2)
        return {}

    forward = stock.unet.forward

    def mean(*args: Any, **kwargs: Any) -> Any:
        said = []
        for number in range(2):
            only(number)
            said.append(forward(*args, **kwargs)[0])
        return (torch.stack(said).mean(0),)

    if way == "composite":
        stock.unet.forward = mean
    only(0)
    theirs = stock("a cat", num_inference_steps=4, guidance_scale=4.0, generator=torch.Generator().manual_seed(0),
                   callback_on_step_end=after).images[0]  # fmt: skip
    _, picture = ours(sd15, two, way)
    assert np.abs(picture - np.asarray(theirs).astype(int)).max() <= 1
    assert np.abs(picture - ours(sd15, two, "add")[1]).max() > 1


@torch.no_grad()
def test_k_lora_in_a_pipeline(sd15: str, two: list[str]) -> None:
    run, picture = ours(sd15, two, "k_lora")
    again, added = ours(sd15, two, "add")
    assert np.abs(picture - added).max() > 1
    x, words = torch.randn(1, 4, 8, 8), torch.randn(1, 7, 24)
    whole = run.unet(x, 5, words).sample
    assert torch.equal(whole, again.unet(x, 5, words).sample)  # behind the pictures all of them act again
    chooser: Any = composition_of(run, "k_lora", 4, 1)
    seen = set()
    for step in range(4):
        chooser.at(step)
        for path in chooser.sums:
            acting = {number for number, own in enumerate(chooser.grafts) if all(g.enabled for g in own[path])}
            assert acting == chooser.chosen(path, step) and len(acting) == 1
            seen |= acting
        assert all(g.enabled for path, own in chooser.grafts[1].items() if path not in chooser.sums for g in own)
    assert seen == {0, 1} and not torch.equal(run.unet(x, 5, words).sample, whole)
    chooser.end()
    assert torch.equal(run.unet(x, 5, words).sample, whole)


def test_b_lora(sdxl: str, tmp_path: Path) -> None:
    assert inserted(unet("sdxl"), "b_lora", {}) == 28_180_480
    with pytest.raises(PeftError, match="b_lora finds no layer under up_blocks.0.attentions.0: this is no SDXL"):
        adapt(stable_diffusion("sd15").unet, "b_lora", rank=2)
    files = []
    for number in range(2):
        model: Any = stable_diffusion("sdxl").unet
        adapt(model, "b_lora", rank=2)
        train(model, seed=number)
        files.append(str(export_adapter(model, None, tmp_path / f"{number}.safetensors", "diffusers_lora")))
    given: dict[str, Any] = {"adapter": [f"{files[0]}:0.5", files[1]], "base": sdxl}
    whole = merge_(into=str(tmp_path / "both.safetensors"), how="b_lora", **given)
    first, second, both = (load_file(file) for file in (*files, whole))
    halves = [{key: value for key, value in each.items() if f"up_blocks.0.attentions.{n}." in key}
              for n, each in enumerate((first, second))]  # fmt: skip
    assert both.keys() == halves[0].keys() | halves[1].keys()
    for key, value in halves[1].items():
        torch.testing.assert_close(both[key], value)
    prompt: dict[str, Any] = {"prompts": "a cat", "how": Drawing(steps=2, guidance=4.0)}
    run = combine([(files[0], 0.5), (files[1], 1.0)], sdxl)
    ((one,),) = run.sample(**prompt, way="b_lora")
    ((other,),) = combine([(str(whole), 1.0)], sdxl).sample(**prompt)
    assert np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max() <= 1


def test_one_half_of_a_run(sdxl: str, toys: str, tmp_path: Path) -> None:
    from diffusion_peft.commands.fit import fit
    from tests.diffusion_peft.conftest import SHORT

    settings = fit.resolve(fit.read_line("--data x --method b_lora --prompt y".split()))
    assert (settings["recipe"], settings["lr"], settings["steps"]) == ("b_lora", 5e-5, 1000)
    out = tmp_path / "run"
    short: dict[str, Any] = SHORT | {"steps": 2, "sample_count": 0}
    fit(data=toys, base=sdxl, method={"name": "b_lora", "rank": 2}, prompt="a v", lr=0.01, out=str(out), **short)
    keys = load_file(
        export(run=str(out), format="diffusers_lora", half="style", out=str(tmp_path / "style.safetensors"))
    )
    assert keys and all("up_blocks.0.attentions.1." in key for key in keys)
    with pytest.raises(PeftError, match="--half writes LoRA layers as they are"):
        export(run=str(out), format="diffusers_lora", half="style", as_="lora")
    with pytest.raises(PeftError, match="--half makes LoRA layers: it goes with"):
        export(run=str(out), format="embeddings", half="style")


def test_what_is_refused(sd15: str, two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for way, files, words in (
        ("switch", two[:1], "--how switch takes two adapters or more that change the unet, and here are 1"),
        ("k_lora", two * 2, "--how k_lora takes two adapters, of a subject and of a style, .* and here are 4"),
        ("b_lora", two, "halves are known of Stable Diffusion XL alone"),
    ):
        with pytest.raises(PeftError, match=words):
            composition_of(combine([(file, 1.0) for file in files], sd15), way, 4, 1)
    for how, adapters, words in (
        ("k_lora", two, "which no file can hold: draw with `sample --how k_lora`"),
        ("b_lora", two[:1], "--how b_lora takes two adapters, of a subject and of a style, not 1"),
        ("b_lora", two, "halves are known of"),
    ):
        with pytest.raises(PeftError, match=words):
            merge_(adapter=adapters, into=str(tmp_path / "x"), how=how, base=sd15)
    line = f"sample --base {sd15} --adapter {two[0]} --prompt cat --how swich --out {tmp_path}/drawn"
    assert main(line.split()) != 0 and "switch" in capsys.readouterr().err


def test_the_command(sd15: str, two: list[str], tmp_path: Path) -> None:
    line = f"sample --base {sd15} --adapter {two[0]}:0.8 --adapter {two[1]}:1.2 --count 1 --steps 4 --guidance 4"
    assert (
        main([*line.split(), "--how", "switch", "--switch_every", "1", "--out", str(tmp_path), "--prompt", "a cat"])
        == 0
    )
    drawn = np.asarray(Image.open(tmp_path / "00-0.png")).astype(int)
    assert np.array_equal(drawn, ours(sd15, two, "switch")[1])
