"""Pairs of picture and caption: losses, chunks, retrieval, a run from the command line to the merged model."""

import csv
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from clip_peft.commands import main
from clip_peft.frozen import Clip
from clip_peft.pairs.learn import PairLearning
from clip_peft.pairs.losses import alike, sigmoid_loss, softmax_loss
from clip_peft.pairs.measure import Measure, Split, recall
from clip_peft.pairs.texts import Captions
from peft_core import PeftError, adapt
from tests import killed
from tests.clip_peft.conftest import COLOURS
from tests.clip_peft.models import LENGTH, clip, close, random, siglip, tokenizer

killed.preload(__name__, "tests.clip_peft.warm")
TEXTS = [f"a {word} thing on a {other} table" for word in COLOURS for other in ("red", "blue")]
LOOK = ((0.5,) * 3, (0.25,) * 3)


@pytest.fixture(scope="module")
def captioned(photos: str) -> str:
    """A table beside the photos: each says its colour and a number, two captions a training picture."""
    rows = []
    for path in sorted(Path(photos).rglob("*.png")):
        split, name = path.parts[-3:-1]
        for form in ("{} number {}", "a photo of {} {}")[: 2 if split == "train" else 1]:
            rows.append((path.relative_to(photos).as_posix(), form.format(name, path.stem), split))
    with open(Path(photos) / "captions.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("filepath", "title", "split"), *rows])
    return f"{photos}/captions.csv"


def test_losses_are_open_clips_where_captions_differ() -> None:
    images, texts = (
        F.normalize(random(6, 16, seed=1).detach(), dim=-1),
        F.normalize(random(6, 16, seed=2).detach(), dim=-1),
    )
    truth, scale, bias = alike(torch.arange(6), torch.arange(6)), torch.tensor(20.0), torch.tensor(-10.0)
    assert truth.equal(torch.eye(6, dtype=torch.bool))
    torch.testing.assert_close(softmax_loss(images, texts, truth, scale), ClipLoss()(images, texts, scale))
    torch.testing.assert_close(
        sigmoid_loss(images, texts, truth, scale, bias), SigLipLoss()(images, texts, scale, bias)
    )


def test_what_is_alike_is_no_negative() -> None:
    """Pictures 0 and 1 have one caption; rows 2 and 3 are one picture with two captions."""
    truth = alike(torch.tensor([0, 1, 2, 2]), torch.tensor([7, 7, 8, 9]))
    assert truth.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    images, texts = random(6, 16, seed=1).detach()[:4], random(6, 16, seed=2).detach()[:4]
    logits = 5 * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    share = truth / truth.sum(1, keepdim=True)
    expected = (F.cross_entropy(logits, share) + F.cross_entropy(logits.T, share)) / 2
    torch.testing.assert_close(softmax_loss(images, texts, truth, torch.tensor(5.0)), expected)


def test_recall_counts_ties_against_the_right_one() -> None:
    same = torch.eye(3)[[0, 0, 1]]  # the first two pictures look alike
    found = recall(same, torch.eye(3)[[0, 0, 1]], [(0,), (1,), (2,)])
    assert found["image_to_text_r1"] == pytest.approx(1 / 3) and found["image_to_text_r5"] == 1
    texts = torch.eye(4)[[1, 0, 2, 3, 1]] * torch.tensor([[0.8], [1], [1], [1], [1]])
    several = recall(torch.eye(4), texts, [(0, 1), (4,), (2,), (3,)])
    assert several["image_to_text_r1"] == 1  # one of a picture's captions is enough
    assert several["text_to_image_r1"] == pytest.approx(4 / 5)  # but each caption is asked for its picture


def learning(model, chunk: int, loss: str = "softmax", texts=tuple(TEXTS)) -> PairLearning:
    held = Clip(model, tokenizer())
    split = Split(None, Captions(held, texts), tuple((i,) for i in range(len(texts))))
    how = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.0, "warmup": 0.0, "final_lr": 1.0, "seed": 0}
    return PairLearning(held, split, LOOK, 3, loss=loss, chunk=chunk, augment="none", rates=(2e-3, 1e-4), **how)  # type: ignore


def gradients_of(model, chunk: int, loss: str) -> tuple[Tensor, list[Tensor]]:
    count = len(TEXTS)
    images = torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    trained = [p for p in model.parameters() if p.requires_grad]
    value = learning(model, chunk, loss).contrast(images, torch.arange(count), torch.arange(count))
    return value, list(torch.autograd.grad(value, trained))


@pytest.mark.parametrize(("make", "loss"), [(clip, "softmax"), (siglip, "sigmoid")])
def test_chunks_give_the_gradients_of_one_piece(make, loss: str) -> None:
    model = adapt(adapt(make().requires_grad_(False), "lora", rank=2), "logit_scale")
    torch.manual_seed(1)
    for p in model.parameters():
        if p.requires_grad and p.dim() > 1:
            p.data += 0.02 * torch.randn_like(p)
    whole, own = gradients_of(model, 0, loss)
    for chunk in (1, 5):
        value, others = gradients_of(model, chunk, loss)
        close(value, whole)
        for one, other in zip(others, own, strict=True):
            assert other.abs().sum() > 0
            torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=1e-4)


def test_towers_have_rates_of_their_own() -> None:
    model = adapt(clip().requires_grad_(False), "lora", rank=2)
    module = learning(model, 0)
    module.optimised = lambda groups: {"groups": groups}  # type: ignore
    groups = module.configure_optimizers()["groups"]
    towers = {id(p) for p in model.visual.parameters()}
    rates = {(id(p) in towers): group["lr"] for group in groups for p in group["params"]}
    assert rates == pytest.approx({True: 2e-3, False: 1e-4})


def test_a_loss_that_the_model_cannot_have_and_captions_that_are_too_long() -> None:
    with pytest.raises(PeftError, match="needs a model with a logit bias"):
        learning(clip(), 0, "sigmoid")
    with pytest.raises(PeftError, match="which this model does not have"):
        adapt(clip().visual, "logit_scale")
    held = Clip(clip(), tokenizer())
    long = "cat " * 40
    found = Captions(held, [long, "cat", ("dog " * (LENGTH - 2)).strip()])
    assert found.cut == 1 and "1 of 3 caption is longer" in found.notes()[0]
    assert found.ids[0].tolist() == tokenizer()([long], context_length=LENGTH)[0].tolist()
    assert Captions(held, ["cat"]).notes() == []


def line(captioned: str, backbone: str, more: str = "") -> str:
    return (
        f"fit --recipe pairs --data {captioned} --backbone {backbone} --epochs 2 --batch_size 12 --lr 0.01 "
        f"--data.cache_dir {Path(captioned).parent.parent}/cache --trainer.accelerator cpu {more}"
    )


@pytest.fixture(scope="module")
def run(captioned: str, backbone: str, photos: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pairs") / "run"
    more = f"--zero_shot {photos} --chunk 5 --curve 2 --train_scale --method.rank 2 --out {out}"
    assert main(line(captioned, backbone, more).split()) == 0
    return out


def test_a_run_scores_before_and_after_and_its_config_runs_it_again(run: Path, capsys: pytest.CaptureFixture) -> None:
    import json

    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    assert [row["scale"] for row in results["curve"]] == [0.0, 0.5, 1.0]
    assert results["after"] != results["before"]
    assert results["logit_scale"] <= 100 and results["logit_scale"] != pytest.approx(100, abs=1e-4)
    report = (run / "report.html").read_text(encoding="utf-8")
    assert (
        "Between stock and trained" in report
        and "caption → picture, after" in report
        and "On val, on the way" in report
    )
    assert "val_loss" in (run / "metrics.csv").read_text(encoding="utf-8").splitlines()[0]
    assert main(["fit", "--config", str(run)]) == 0  # of the pairs' own command
    assert "is finished already" in capsys.readouterr().out


def test_the_merged_model_is_plain_open_clips(run: Path, photos: str, tmp_path: Path) -> None:
    from peft_core import load_run

    assert main(f"merge --run {run} --out {tmp_path}/merged".split()) == 0
    merged = open_clip.create_model(f"local-dir:{tmp_path}/merged").eval()
    ours = load_run(run).model.model
    pictures = torch.randn(2, 3, 32, 32)
    assert set(merged.state_dict()) == set(clip().state_dict())
    torch.testing.assert_close(merged.encode_image(pictures), ours.encode_image(pictures), atol=1e-5, rtol=1e-4)
    assert merged.logit_scale.item() == pytest.approx(ours.logit_scale.item()) != math.log(100)


def test_retrieve_and_predict(run: Path, photos: str, capsys: pytest.CaptureFixture) -> None:
    assert (
        main(
            [
                "retrieve",
                "red number 1",
                "blue number 2",
                "--run",
                str(run),
                "--pictures",
                f"{photos}/test",
                "--top",
                "3",
            ]
        )
        == 0
    )
    rows = list(csv.reader(capsys.readouterr().out.splitlines()))
    assert rows[0] == ["text", "path", "similarity"] and len(rows) == 7
    assert [row[0] for row in rows[1::3]] == ["red number 1", "blue number 2"]
    assert float(rows[1][2]) >= float(rows[2][2]) >= float(rows[3][2])
    assert main(f"predict {photos}/test/red/0.png --run {run} --classes red blue".split()) == 0
    assert "red" in capsys.readouterr().out
    for wrong, words in (
        (f"predict {photos}/test/red/0.png --run {run}", "name some with --classes"),
        (f"test --run {run}", "name a data set of classes"),
        (f"export --run {run} --out {run}/../x --what weights", "has no classes"),
    ):
        assert main(wrong.split()) == 2
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("--method coop", "take a method that grafts"),
        ("--batch_size 1", "nothing to be told apart from"),
        ("--loss sigmoid", "give --loss softmax"),
        ("--template photo", "holds no {}"),
        ("--data.caption_column titel", "did you mean 'title'"),
        ("--shots 4", "unknown option --shots"),
    ],
)
def test_mistakes_are_told(captioned: str, backbone: str, more: str, words: str, tmp_path: Path, capsys) -> None:
    assert main([*line(captioned, backbone).split(), "--out", f"{tmp_path}/run", *more.split()]) == 2
    assert words in capsys.readouterr().err


def train(settings: dict, die_at: int | None) -> None:
    from clip_peft.fit import fit

    killed.die_at(die_at)
    fit(**settings)


@pytest.mark.slow  # the few-shot runs' stands for it: how training goes on is shared
def test_killed_at_any_step(captioned: str, backbone: str, tmp_path: Path) -> None:
    common = {
        "recipe": "pairs",
        "data": captioned,
        "backbone": backbone,
        "epochs": 2,
        "batch_size": 12,
        "save_every": 0.0,
    }
    common |= {"method": {"name": "lora", "rank": 2, "dropout": 0.1}, "trainer": {"accelerator": "cpu"}, "chunk": 4}
    assert killed.exit_of(train, common | {"out": f"{tmp_path}/whole"}, None) == 0
    assert killed.exit_of(train, common | {"out": f"{tmp_path}/run"}, 3) == -signal.SIGKILL
    assert killed.exit_of(train, common | {"out": f"{tmp_path}/run"}, None) == 0
    for name in ("adapter/adapter.safetensors", "metrics.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.slow
def test_two_processes_equal_one(captioned: str, backbone: str, tmp_path: Path) -> None:
    """Negatives of both processes are in the loss of each."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    one_caption = Path(captioned).with_name("one_caption.csv")  # which of several is drawn depends on the process
    rows = list(csv.reader(Path(captioned).read_text(encoding="utf-8").splitlines()))
    kept = [row for row in rows if not row[1].startswith("a photo")]
    with open(one_caption, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(kept)
    words = line(
        str(one_caption), backbone, f"--chunk 2 --curve 0 --train_scale --trainer.gradient_clip_val 1 --out {tmp_path}"
    )
    two = f"{words}/two --trainer.devices 2 --trainer.strategy ddp".split()
    done = subprocess.run(
        [sys.executable, "-m", "clip_peft.commands", *two], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert main(f"{words}/one".split()) == 0
    one, other = (load_file(tmp_path / name / "adapter/adapter.safetensors") for name in ("one", "two"))
    assert one.keys() == other.keys()
    for key, value in one.items():
        torch.testing.assert_close(other[key], value, atol=1e-4, rtol=1e-3, msg=key)


def test_the_text_side_is_the_models_own(backbone: str) -> None:
    """Packed captions give what encode_text gives; of siglip's tower, too, which reads them at full length."""
    for make in (clip, siglip):
        held = Clip(make(), tokenizer())
        found = Captions(held, TEXTS)
        with torch.no_grad():
            expected = held.model.encode_text(found.ids.long(), normalize=True)
        torch.testing.assert_close(Measure(held, *LOOK).texts(found), expected, atol=1e-5, rtol=1e-4)


def test_pictures_that_cannot_be_read_leave_with_their_captions(captioned: str, backbone: str, tmp_path: Path) -> None:
    from clip_peft.pairs.measure import split_of
    from clip_peft.pairs.source import PairSource

    for i in range(3):
        Image.new("RGB", (8, 8), (i * 90, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "1.png").write_bytes(b"no picture")
    (tmp_path / "c.csv").write_text("path,caption\n0.png,zero\n1.png,one\n2.png,two\n", encoding="utf-8")
    source = PairSource(f"{tmp_path}/c.csv", {"on_bad_image": "skip", "val": 0.0, "test": 0.0})
    data = source.open()
    split = split_of(Clip(clip(), tokenizer()), source.decode(data.train.pictures, (32, 32)), data.train.captions)
    assert split.captions.texts == ["zero", "two"] and split.own == ((0,), (1,))
