"""`vision_peft laplace`: the posterior against dense matrices, and the command on a finished run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev

from peft_core import PeftError, adapt
from peft_core.testing import perturb
from tests.tiny import MODELS
from vision_peft.commands import main
from vision_peft.laplace.command import figures
from vision_peft.laplace.factors import RANK, Factor
from vision_peft.laplace.posterior import Posterior, probabilities


def tiny(name: str = "vit", **settings: Any) -> nn.Module:
    model = adapt(MODELS[name].model().eval().double(), "lora", rank=2, alpha=3.0, **settings)
    perturb(model)
    return model.requires_grad_(False)


def dense_jacobian(model: nn.Module, posterior: Posterior, x: Tensor) -> Tensor:
    """∂ logits/∂θ, B C |θ|, in the order A, B of each change."""
    names = {id(p): name for name, p in model.named_parameters()}
    chosen = [p for change in posterior.changes for p in (change.A, change.B)]
    found: Any = jacrev(lambda given: functional_call(model, given, (x,)))({names[id(p)]: p for p in chosen})
    return torch.cat([found[names[id(p)]].flatten(2) for p in chosen], 2)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")  # jacrev over attention
@pytest.mark.parametrize(
    "name, targets", [("vit", ("q", "v")), ("vit", ("qkv", "patch_embed")), ("swin", ("q", "fc1"))]
)
def test_logit_covariance_as_by_dense_matrices(name: str, targets: tuple[str, ...]):
    model, size = tiny(name, targets=targets), 56 if name == "swin" else 32
    x = torch.randn(3, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    posterior = Posterior(model)
    posterior.fit([x[:2], x[2:]])
    posterior.precision = 2.5
    blocks = []
    for factors, tokens in zip(posterior.factors, posterior.tokens, strict=True):
        in_a, out_a, in_b, out_b = ((u * s) @ u.t() for u, s in (factor.eigen() for factor in factors))
        blocks += [torch.kron(out_a, in_a) / tokens, torch.kron(out_b, in_b) / tokens]
    precision = torch.block_diag(*blocks) + 2.5 * torch.eye(sum(len(b) for b in blocks), dtype=torch.float64)
    jacobian = dense_jacobian(model, posterior, x)
    mean, covariance = posterior.logits(x)
    expected = jacobian @ torch.linalg.inv(precision) @ jacobian.transpose(1, 2)
    torch.testing.assert_close(covariance, expected, rtol=1e-6, atol=1e-8 * expected.abs().max().item())
    torch.testing.assert_close(mean, model(x))
    whole = torch.linalg.slogdet(precision)[1] - len(precision) * torch.tensor(2.5, dtype=torch.float64).log()
    norm = sum(p.square().sum() for change in posterior.changes for p in (change.A, change.B))
    evidence = posterior.evidence(torch.tensor(2.5, dtype=torch.float64).log())
    torch.testing.assert_close(evidence, -0.5 * (whole + 2.5 * norm), rtol=1e-5, atol=1e-5)


def test_curvature_of_one_token_is_the_gauss_newton_matrix():
    """With one sample and one token the Kronecker product is exact: H = Jᵀ Λ J within each matrix."""
    model = tiny(targets=("fc1",), blocks=(2,))
    posterior = Posterior(model)
    (change,) = posterior.changes
    seen: list[Any] = []
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    posterior.fit([x])
    logits, seen = posterior._run(x)
    p = logits.detach().softmax(-1)[0]
    hessian = torch.diag(p) - torch.outer(p, p)
    # the head reads the class token alone, so of the last block's MLP only its row has a gradient
    rows = seen[0][1][0, :1]
    pairs = [
        posterior._gradients(logits, seen, torch.eye(5, dtype=torch.float64)[c : c + 1], False)[0] for c in range(5)
    ]
    high = torch.stack([pair[1][0, 0] for pair in pairs])
    u, s = posterior.factors[0][3].eigen()
    torch.testing.assert_close((u * s) @ u.t(), high.t() @ hessian @ high, rtol=1e-6, atol=1e-10)
    assert rows.shape == (1, 48) and change.A.shape == (2, 48)


def test_a_wide_factor_of_low_rank_is_exact():
    rows = torch.randn(50, 4, dtype=torch.float64) @ torch.randn(4, 300, dtype=torch.float64)
    wide = Factor(300, rows)
    for part in rows.split(20):
        wide.add(part)
    vectors, values = wide.eigen()
    assert wide.sum.shape == (300, 3 * RANK) and values.shape[0] <= RANK
    torch.testing.assert_close((vectors * values) @ vectors.t(), rows.t() @ rows, rtol=1e-6, atol=1e-6)


def test_the_prior_has_the_most_evidence():
    posterior = Posterior(tiny(targets=("q", "v")))
    posterior.fit([torch.randn(4, 3, 32, 32, dtype=torch.float64)])
    best = torch.tensor(posterior.choose_prior(steps=400)).double().log()
    here = posterior.evidence(best)
    assert here > posterior.evidence(best - 0.3) and here > posterior.evidence(best + 0.3)


def test_probabilities_are_a_mean_of_softmaxes():
    mean = torch.tensor([[3.0, 0.0]], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    sure = probabilities(mean, torch.zeros(1, 2, 2, dtype=torch.float64), 100, generator)
    torch.testing.assert_close(sure, mean.softmax(-1), rtol=1e-3, atol=1e-4)
    unsure = probabilities(mean, 9 * torch.eye(2, dtype=torch.float64)[None], 20_000, generator)
    assert 0.7 < unsure[0, 0] < 0.8 < sure[0, 0]  # E σ(d), d ~ N(3, 18): by probit σ(3/√(1 + 18 π/8)) = 0.734


def test_figures():
    probability = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.45, 0.55]], dtype=torch.float64)
    found = figures(probability, torch.tensor([0, 1, 1, 0]))
    assert found["accuracy"] == 0.5
    assert found["nll"] == pytest.approx(-torch.tensor([0.9, 0.2, 0.7, 0.45]).log().mean().item(), rel=1e-5)
    assert found["ece"] == pytest.approx((0.1 + 0.8 + 0.3 + 0.55) / 4)


def test_command(small_run: Path, capsys: pytest.CaptureFixture):
    line = ["laplace", "--run", str(small_run), "--draws", "50", "--fit_pictures", "20", "--batch_size", "6"]
    assert main(line) == 0
    kept = json.loads((small_run / "laplace.json").read_text(encoding="utf-8"))
    results = json.loads((small_run / "results.json").read_text(encoding="utf-8"))
    assert kept["before"]["accuracy"] == pytest.approx(results["accuracy"]) and kept["pictures"] == 24
    assert kept["prior_precision"] > 0 and kept["fit_pictures"] == 20
    said = capsys.readouterr().out
    assert "before  accuracy" in said and f"NLL {kept['after']['nll']:.4f}" in said
    (small_run / "laplace.json").unlink()


def test_other_weights_are_refused():
    with pytest.raises(PeftError, match=r"changes of other kinds \(Decomposed\)"):
        Posterior(adapt(MODELS["vit"].model(), "dora", rank=2))
    with pytest.raises(PeftError, match="this model has none"):
        Posterior(adapt(MODELS["vit"].model(), "bitfit"))
