"""Settings chosen on val, or on training pictures that are left out; what starts from the pictures' features."""

from typing import Any

import pytest
import torch
from torch import Tensor

from clip_peft import OpenVocabulary
from clip_peft.training.choosing import choose, each_left_out
from peft_core import PeftError
from tests.clip_peft.models import NAMES, clip, pictures, tokenizer


class Seen:
    """A learner that keeps what it was told; a feature is (view, row)."""

    def __init__(self) -> None:
        self._parameters: dict[str, Any] = {}
        self._buffers: dict[str, Any] = {}

    def remember(self, features: Tensor, labels: Tensor) -> None:
        assert features.shape[1] == len(labels)
        self.told = {(int(view), int(row)) for view, row in features.flatten(0, 1).tolist()}


def parts(labels: list[int], views: int) -> list[tuple[Any, Tensor, Tensor]]:
    rows = torch.stack(
        [torch.stack((torch.full((len(labels),), k), torch.arange(len(labels))), -1) for k in range(views)]
    )
    return list(each_left_out(Seen(), rows.float(), torch.tensor(labels)))


def test_nobody_is_asked_what_it_was_told() -> None:
    asked: list[int] = []
    for learner, features, labels in parts([0, 1, 0, 1, 0], 3):
        for view, row in features.tolist():
            assert all(row != other for _, other in learner.told), (view, row)
            asked.append(int(row))
        assert len(labels) == len(features)
    assert sorted(asked) == [0, 1, 2, 3, 4]


def test_an_only_picture_is_asked_for_by_another_view() -> None:
    found = parts([0, 1, 1], 2)
    assert len(found) == 2
    for learner, features, _ in found:
        for view, row in features.tolist():
            assert (view, row) not in learner.told
            assert row != 0 or (1 - view, 0) in learner.told
    assert (
        parts([0, 1], 1) == [] and len(parts([0, 1], 2)) == 1
    )  # one view of one picture a class teaches nothing of itself


def built(method: str, **hyper: Any) -> Any:
    return OpenVocabulary(clip(), method, NAMES, tokenizer(), **hyper)


def views(count: int, names: int = len(NAMES)) -> tuple[Tensor, Tensor]:
    whole = built("zero_shot")
    x = pictures(count * names)
    return torch.stack([whole.encode(x + 0.1 * k).detach() for k in range(3)]), torch.arange(count * names) % names


@pytest.mark.parametrize("method", ["tip_adapter", "ape", "gda"])
@pytest.mark.parametrize("count", [1, 2])
def test_strengths_are_chosen_on_left_out_pictures(method: str, count: int) -> None:
    whole, (features, labels) = built(method), views(count)
    whole.learner.remember(features, labels)
    before = {key: value.clone() for key, value in whole.learner.state_dict().items()}
    found = choose(whole, each_left_out(whole.learner, features, labels), "train")
    assert found["pictures"] == count * len(NAMES) and 0 <= found["accuracy"] <= 1
    assert all(getattr(whole.method, key) == value for key, value in found["settings"].items())
    assert whole.learner.method is whole.method
    after = whole.learner.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_the_first_of_the_best_is_taken() -> None:
    class Choices:
        def choices(self, features: Tensor) -> Any:
            right, wrong = torch.eye(2) * 3, -torch.eye(2) * 3
            yield from (({"alpha": 1.0}, wrong), ({"alpha": 2.0}, right), ({"alpha": 3.0}, right))

    whole = built("gda")
    found = choose(whole, [(Choices(), torch.zeros(2, 1), torch.tensor([0, 1]))], "val")
    assert (
        found == {"settings": {"alpha": 2.0}, "on": "val", "accuracy": 1.0, "pictures": 2} and whole.method.alpha == 2.0
    )
    assert choose(built("gda", alpha=1.0), [], "val") == {}


@pytest.mark.parametrize("method", ["gda", "ape", "clap", "lp_plus_plus", "prolip", "tip_adapter"])
def test_features_of_another_model_and_wrong_labels_are_told(method: str) -> None:
    whole, labels = built(method), torch.arange(3)
    width = 64 if method == "prolip" else 16
    with pytest.raises(
        PeftError, match=f"{method} got features of 10 numbers, but this model's have {width}: .* another model"
    ):
        whole.learner.remember(torch.zeros(3, 10), labels)
    with pytest.raises(PeftError, match=f"{method} got 3 features and 2 labels"):
        whole.learner.remember(torch.zeros(3, width), labels[:2])
    if method != "prolip":
        with pytest.raises(PeftError, match=f"{method}'s cache is empty: call learner.remember"):
            whole.loss(pictures(), torch.tensor([0, 1, 2, 3]))


def test_a_class_without_pictures_and_one_shot() -> None:
    features, labels = views(1)
    seen = labels != 2
    for method in ("gda", "ape", "clap", "lp_plus_plus", "tip_adapter"):
        whole = built(method)
        whole.learner.remember(features[:, seen], labels[seen])
        assert whole(pictures()).isfinite().all() and whole.loss(pictures(), torch.tensor([0, 1, 2, 3])).isfinite()


def test_gda_names_old_and_new_classes_together() -> None:
    whole, (features, labels) = built("gda", alpha=1.0, neighbours=4), views(2)
    whole.learner.remember(features, labels)
    x = pictures()
    before = whole(x).detach()
    after = whole.set_classes([NAMES[3], "zebra", NAMES[0]])(x).detach()
    torch.testing.assert_close(after[:, [0, 2]], before[:, [3, 0]])
    alone = built("gda", alpha=1.0, neighbours=0)
    alone.learner.remember(features, labels)
    with pytest.raises(PeftError, match="cannot name other classes, because it kept no features"):
        alone.set_classes(["zebra"])


def test_prolip_needs_a_projection_and_merges_into_a_plain_model() -> None:
    whole, x = built("prolip"), pictures()
    with torch.no_grad():
        whole.learner.weight.mul_(1.5).add_(torch.randn(64, 16, generator=torch.Generator().manual_seed(1)))
        learnt = whole(x)
        assert not torch.allclose(built("zero_shot")(x), learnt)
        whole.learner.write_into(whole.model)
        torch.testing.assert_close(OpenVocabulary(whole.model, "zero_shot", NAMES, tokenizer())(x), learnt)
    model = clip()
    model.visual.proj = None
    with pytest.raises(PeftError, match="ends in no linear projection of its own"):
        OpenVocabulary(model, "prolip", NAMES, tokenizer())
    with pytest.raises(PeftError, match="tip_adapter learns beside the model"):
        built("tip_adapter").learner.write_into(clip())
