"""Logits of patched models that are computed where someone looks at them."""

import pickle
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from tiny_models import DENSE, VOCABULARY, batch, both, build, error, run
from torch import Tensor, nn
from torch.nn.utils import parametrize

from pylm import ops
from pylm.errors import InputError
from pylm.ops._deferred import DeferredLogits

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
transformers.logging.set_verbosity_error()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices: a second thread only waits."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def test_deferred_logits_are_logits() -> None:
    plain, patched = both("Gemma2")
    inputs = batch()
    expected, outputs = plain(**inputs), patched(**inputs)
    logits = outputs.logits
    assert (logits.shape, logits.dtype, logits.device) == (
        expected.logits.shape,
        torch.float32,
        torch.device("cpu"),
    )
    assert "DeferredLogits(shape=(3, 17, 61)" in repr(logits)
    assert not logits.is_computed
    with torch.no_grad():
        assert not logits.argmax(-1).requires_grad
        torch.testing.assert_close(logits[..., :-1, :], expected.logits[..., :-1, :])
    # What was asked for without gradients does not cut them off later.
    assert logits.softmax(-1).requires_grad
    for function in (
        lambda x: x.logsumexp(-1).sum(),
        lambda x: torch.log_softmax(x, -1)[:, 0].sum(),
        lambda x: (2.0 - x / 3.0 + x * 2.0 - 1.0).square().sum(),
        lambda x: F.cross_entropy(x.transpose(1, 2), inputs["labels"], reduction="sum"),
        lambda x: torch.cat([x, x]).sum(),
        lambda x: x.to(torch.float64).sum(),
        lambda x: x.to("cpu").float().contiguous().view(-1, VOCABULARY).reshape(-1).sum(),
    ):
        weights = plain.model.embed_tokens.weight, patched.model.embed_tokens.weight
        (want,) = torch.autograd.grad(function(expected.logits), weights[0], retain_graph=True)
        (got,) = torch.autograd.grad(function(logits), weights[1], retain_graph=True)
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert torch.equal(pickle.loads(pickle.dumps(patched(**inputs).logits)), logits)
    assert torch.equal(logits == logits.materialize(), torch.ones(logits.shape, dtype=torch.bool))
    assert len(list(logits)) == len(logits) == 3


def test_deferred_logits_of_changed_weights_are_refused() -> None:
    _, patched = both()
    outputs = patched(**batch())
    outputs.loss.backward()
    with torch.no_grad():
        patched.lm_head.weight.mul_(2.0)
    with pytest.raises(InputError, match=r"look at outputs.logits before optimizer.step\(\)"):
        outputs.logits.sum()


def test_deferred_logits_keep_the_autocast_of_the_forward() -> None:
    plain, patched = both()
    inputs = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, outputs = plain(**inputs), patched(**inputs)
    assert outputs.logits.dtype == expected.logits.dtype == torch.bfloat16
    assert outputs.logits.materialize().dtype == torch.bfloat16
    assert error(outputs.logits.double(), expected.logits.double()) < 0.02


def test_logits_look_as_they_would_have_been_made() -> None:
    model = build("Llama").train()
    ops.patch(model)
    with torch.no_grad():
        quiet = model(**batch()).logits
    loud = model(**batch()).logits
    with torch.inference_mode():
        inferred = model(**batch()).logits
    assert not quiet.requires_grad
    assert inferred.sum().isfinite()
    with torch.no_grad():
        assert loud.requires_grad
    quiet[..., 0] = 0.0
    assert float(quiet[..., 0].abs().max()) == 0.0
    assert bool(((quiet // 2.0) * 2.0 + quiet % 2.0 - quiet).abs().max() < 1e-5)
    later = model(**batch()).logits
    model.lm_head.weight = nn.Parameter(torch.zeros_like(model.lm_head.weight))
    with pytest.raises(InputError, match="after the weights of the model had changed"):
        later.sum()


class _Scale(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2.0 * weight


def test_a_parametrized_weight_is_the_same_at_each_look() -> None:
    plain, patched = both()
    for model in (plain, patched):
        parametrize.register_parametrization(model.lm_head, "weight", _Scale())
    expected, outputs = plain(**batch()), patched(**batch())
    assert isinstance(outputs.logits, DeferredLogits)
    torch.testing.assert_close(outputs.loss, expected.loss)
    torch.testing.assert_close(outputs.logits.materialize(), expected.logits)
    actual, wanted = run(patched, batch()), run(plain, batch())
    assert all(error(actual[name], wanted[name]) < 1e-5 for name in wanted)
    late = patched(**batch()).logits
    with torch.no_grad():
        patched.lm_head.parametrizations.weight.original.mul_(2.0)
    with pytest.raises(InputError, match="after the weights of the model had changed"):
        late.sum()
    late = patched(**batch()).logits
    parametrize.remove_parametrizations(patched.lm_head, "weight")
    parametrize.register_parametrization(patched.lm_head, "weight", _Scale())
    with pytest.raises(InputError, match="after the weights of the model had changed"):
        late.sum()


def test_inference_mode_changes_nothing() -> None:
    plain, patched = build("Llama"), build("Llama")
    with torch.inference_mode():
        assert ops.patch(patched).counts == DENSE
    actual, expected = run(patched, batch()), run(plain, batch())
    assert all(error(actual[name], expected[name]) < 1e-5 for name in expected)
    with torch.inference_mode():  # a model of inference mode, too
        made = build("Llama")
        assert ops.patch(made).counts == DENSE
        outputs = made(**batch())
        assert isinstance(outputs.logits, DeferredLogits)
        assert error(outputs.logits.double(), expected["logits"]) < 1e-5
        assert error(outputs.loss.double(), expected["loss"]) < 1e-5


def test_accelerate_gathers_what_was_looked_at() -> None:
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    _, patched = both()
    logits = patched(**batch()).logits
    apply = accelerate.utils.operations.recursively_apply
    (given,) = apply(lambda x: x, [logits.detach()], error_on_other_type=True)
    assert type(given) is Tensor
    assert torch.equal(given, logits.materialize())
