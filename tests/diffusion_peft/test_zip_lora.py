"""ZipLoRA: its loss and gradients as in mkshing/ziplora-pytorch 6871e5e (ziplora.py, and the lines of its training step, run
elsewhere), and the command."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from diffusion_peft.commands.merge import merge_
from diffusion_peft.files.layers import Layer
from diffusion_peft.formats import export_adapter, import_adapter
from diffusion_peft.personalize.zip_lora import Pair, loss_of
from peft_core import PeftError, adapt
from peft_core.anatomies import Anatomy
from tests.diffusion_peft.pipelines import stable_diffusion, train
from tests.parity.golden import golden, values


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8).double(), nn.Linear(8, 5).double()
        with torch.no_grad():
            for key, parameter in self.named_parameters():
                parameter.copy_(values(f"w.{key}", parameter.shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.two(torch.tanh(self.one(x)))

    def peft_anatomy(self) -> Anatomy:
        return Anatomy("net", (), {None: []})


def layers(who: str, rank: int) -> dict[str, Layer]:
    shapes = {"one": (8, 6), "two": (5, 8)}
    return {
        name: Layer("lora", {"A": values(f"{who}.{name}.A", (rank, wide)), "B": values(f"{who}.{name}.B", (out, rank))})
        for name, (out, wide) in shapes.items()
    }


def test_as_in_its_code() -> None:
    wanted, net = golden("zip_lora"), Net()
    pair = Pair(net, (layers("c", 2), layers("s", 3)))
    with torch.no_grad():
        for name, graft in pair.layers.items():
            for number, merger in enumerate(graft.mergers):
                merger.add_(values(f"m{number + 1}.{name}", merger.shape))
    noised = [{"x": values(name, (4, 6))} for name in ("xc", "xs")]
    total, overlap = loss_of(pair, net, noised, 0.01)
    torch.testing.assert_close(total, wanted["loss"], rtol=1e-6, atol=0)  # in float32, as there
    torch.testing.assert_close(overlap, wanted["overlap"], rtol=1e-10, atol=0)
    total.backward()
    for name, graft in pair.layers.items():
        for number, merger in enumerate(graft.mergers):
            torch.testing.assert_close(merger.grad, wanted[f"grad.{name}.{number}"], rtol=1e-5, atol=1e-9)
    for name, layer in pair.result().items():
        torch.testing.assert_close(
            layer.tensors["B"] @ layer.tensors["A"], wanted[f"weight.{name}"], rtol=1e-10, atol=1e-12
        )
        assert layer.rank == 5


def test_what_one_alone_changes_stays() -> None:
    net, style = Net(), layers("s", 3)
    del style["two"]
    content = {name: Layer("lora", layer.tensors, 0.5) for name, layer in layers("c", 2).items()}
    pair = Pair(net, (content, style))
    found = pair.result()["two"]
    assert found.scale == 0.5 and torch.equal(found.tensors["A"], content["two"].tensors["A"])
    pair.act(1)
    stock = Net()
    h = values("h", (3, 8))
    assert torch.equal(net.two(h), stock.two(h))
    with pytest.raises(PeftError, match="share no layer"):
        Pair(Net(), ({"one": content["one"]}, {"two": content["two"]}))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder, found = tmp_path_factory.mktemp("files"), []
    for number in range(2):
        model: Any = stable_diffusion("sd15").unet
        adapt(model, "lora", rank=2 + number, alpha=4.0, targets=("cross_attn",) if number else ("attn", "cross_attn"))
        train(model, seed=number)
        found.append(str(export_adapter(model, None, folder / f"{number}.safetensors", "diffusers_lora")))
    return found


def test_the_command(sd15: str, toys: str, balls: str, files: list[str], tmp_path: Path) -> None:
    given: dict[str, Any] = dict(adapter=[f"{files[0]}:0.7", files[1]], base=sd15, data=[toys, balls],
                                 prompt=["a toy", "a ball"], how="zip", steps=2)  # fmt: skip
    plain = load_file(merge_(adapter=given["adapter"], base=sd15, into=str(tmp_path / "cat.safetensors")))
    still = load_file(merge_(**given, lr=1e-12, into=str(tmp_path / "still.safetensors")))
    assert still.keys() == plain.keys()
    zipped, again = (load_file(merge_(**given, lr=0.05, into=str(tmp_path / f"{n}.safetensors"))) for n in range(2))
    moved = 0
    for key, value in zipped.items():
        assert torch.equal(value, again[key])
        assert value.shape == plain[key].shape
        moved += not torch.equal(value, still[key])
    assert moved  # coefficients stand in the first factors
    unets: list[Any] = [stable_diffusion("sd15").unet for _ in range(3)]
    for model, name in zip(unets, ("cat", "still", "0"), strict=True):
        import_adapter(model, None, tmp_path / f"{name}.safetensors")
    x, words = torch.randn(1, 4, 8, 8), torch.randn(1, 7, 24)
    with torch.no_grad():
        cat, start, end = (model(x, 5, words).sample for model in unets)
    torch.testing.assert_close(start, cat, rtol=1e-4, atol=1e-5)
    assert (end - cat).abs().max() > 1e-4
    small = load_file(merge_(**given, rank=1, into=str(tmp_path / "small.safetensors")))
    assert {min(value.shape[:2]) for value in small.values()} == {1}


def test_what_is_refused(sd15: str, toys: str, files: list[str], lora_run: Path, tmp_path: Path) -> None:
    given: dict[str, Any] = dict(base=sd15, how="zip", into=str(tmp_path / "x"))
    for more, words in (
        ({"adapter": files}, "which a file does not name: give --data, a folder for each adapter"),
        ({"adapter": files, "data": [toys]}, "--data is one for each adapter, 2, not 1"),
        ({"adapter": files[:1], "data": [toys]}, "--how zip takes two adapters, of a subject and of a style, not 1"),
        ({"adapter": files, "how": "svd", "data": [toys, toys]}, "are what --how zip learns its coefficients on"),
        (
            {"adapter": [str(lora_run), files[0]], "data": [toys, toys], "prompt": ["a <toy>", "b"]},
            "--how zip merges changes of the unet, and one of these changes the text",
        ),
    ):
        with pytest.raises(PeftError, match=words):
            merge_(**given | more)
    assert not (tmp_path / "x").exists()
