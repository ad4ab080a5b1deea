"""Models for several tasks against tensors that the authors' own code gave, in float64: forward, gradients, one training step.

rabeehk/hyperformer 56b0f99: `AdapterLayersOneHyperNetController` and `AdapterLayersHyperNetController` with
`MetaLayersAdapterController` behind attention and MLP of timm's ViT, drop path on; the second of two tasks.
"""

import pytest

from peft_core import PeftError, adapt
from peft_core.methods.adapters.hyperformer import set_task
from tests.parity.test_official import LABELS, PICTURES, check, vit
from tests.parity.test_official_vectors import fill


def of_the_net(key: str) -> str:
    last = key.partition("hypernetwork.value.")[2]
    return f"net.{last}" if last.startswith("norm") else last


@pytest.mark.parametrize("form", ["shared", "apart"])
def test_a_step_of_hyperformer_is_the_authors(form: str) -> None:
    sizes = dict(reduction=8, embedding=4, hidden=8, projected=6)
    model = adapt(vit(drop_path_rate=0.5), "hyperformer", tasks=("one", "two"), form=form, **sizes)
    names = fill(model, of_the_net)
    set_task(model, "two")
    check(f"hyperformer_{form}", model, names, lambda: model(PICTURES), LABELS, lambda: None)


def test_a_forward_serves_the_task_that_is_on() -> None:
    model = adapt(vit(), "hyperformer", tasks=("one", "two"), task="two", reduction=8).eval()
    two = model(PICTURES)
    one = set_task(model, "one")(PICTURES)
    assert not one.allclose(two) and set_task(model, "two", "hyperformer")(PICTURES).equal(two)


def test_tasks_that_are_not_there_are_refused() -> None:
    model = adapt(vit(), "hyperformer", tasks=("cars", "pets"), reduction=8)
    with pytest.raises(PeftError, match='no task "pet".*pets'):
        set_task(model, "pet")
    with pytest.raises(PeftError, match="each once"):
        adapt(vit(), "hyperformer", tasks=("cars", "cars"))
    with pytest.raises(PeftError, match='no task "birds"'):
        adapt(vit(), "hyperformer", tasks=("cars",), task="birds")
    with pytest.raises(PeftError, match="D/32 wide"):
        adapt(vit(), "hyperformer")
    with pytest.raises(PeftError, match="no adaptation with tasks"):
        set_task(adapt(vit(), "linear"), "cars")
