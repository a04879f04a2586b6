"""Patched transformers models against unpatched ones, and against both in float64."""

import copy
import inspect
import itertools
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny_models import DENSE, FAMILIES, LAYERS, VOCABULARY, batch, both, build, error, kinds, run
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pylm import ops
from pylm.errors import InputError
from pylm.ops._deferred import DeferredLogits

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
transformers.logging.set_verbosity_error()

# An error may be twice that of the unpatched model, both against the unpatched one in float64, relative to
# the norm of a tensor; and a little more, where an unpatched model is exact by chance. Under autocast it has
# normed queries and keys in float32 where pylm has bfloat16: up to four roundings more there and back.
FLOOR = {torch.float32: 1e-6, torch.bfloat16: 4 * 2.0**-9}
# transformers normalises and computes the loss in float32 even in float64 models: a few dozen roundings.
FLOAT64_LIMIT = 64 * torch.finfo(torch.float32).eps


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices: a second thread only waits."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_loss_logits_and_gradients_are_as_good_as_before(family: str, dtype: torch.dtype) -> None:
    inputs, plain = batch(), build(family)
    patched = copy.deepcopy(plain)
    reference = copy.deepcopy(plain).double()
    for model in (reference, *([patched] if dtype == torch.float64 else [])):
        if hasattr(model.config, "num_experts_per_tok"):
            model.set_experts_implementation("eager")  # the default has no float64
    expected = run(reference, inputs)
    ops.patch(patched)
    if dtype == torch.float64:
        actual = run(patched.double(), inputs)
        assert actual.keys() == expected.keys()
        for name in expected:
            assert error(actual[name], expected[name]) <= FLOAT64_LIMIT, name
        return
    autocast = dtype == torch.bfloat16
    before, actual = run(plain, inputs, autocast=autocast), run(patched, inputs, autocast=autocast)
    assert actual.keys() == expected.keys()
    for name in expected:
        limit = 2.0 * error(before[name], expected[name]) + FLOOR[dtype]
        assert error(actual[name], expected[name]) <= limit, name


@pytest.mark.parametrize("family", FAMILIES)
def test_report_says_what_was_swapped(family: str) -> None:
    model = build(family)
    report = ops.patch(model)
    assert report.model == f"{family}ForCausalLM"
    assert report.counts == FAMILIES[family][1]
    assert report.left == ()
    text = str(report)
    assert f"{len(report.swapped)} modules swapped" in text
    assert "model.layers.*.self_attn" in text
    names = dict(model.named_modules())
    assert all(type(names[entry.name]).__name__ == entry.kind for entry in report.swapped)


class _NoLogits(TorchDispatchMode):
    """Fail where any operation but pylm's gives a tensor of the vocabulary's width and all rows."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and func.namespace != "pylm":
            is_logits = (
                result.dim() > 1 and result.shape[-1] == VOCABULARY and result.numel() >= 51 * VOCABULARY
            )
            assert not is_logits, f"{func} computed logits"
        return result


@pytest.mark.parametrize("family", FAMILIES)
def test_training_computes_no_logits(family: str) -> None:
    model, inputs = build(family), batch()
    with pytest.raises(AssertionError, match="computed logits"), _NoLogits():
        model(**inputs)
    ops.patch(model)
    with _NoLogits():
        outputs = model(**inputs)
        outputs.loss.backward()
    assert not outputs.logits.is_computed


# The loss


LOSS_ARGUMENTS: dict[str, dict[str, Any]] = {
    "mean": {},
    "number of items": {"num_items_in_batch": 71},
    "tensor of items": {"num_items_in_batch": torch.tensor(29)},
    "ignore_index": {"ignore_index": 7},
    "shift_labels": {"shift_labels": torch.randint(0, VOCABULARY, (3, 17))},
    "last logits": {"logits_to_keep": 6, "labels": torch.randint(0, VOCABULARY, (3, 6))},
    "chosen logits": {
        "logits_to_keep": torch.tensor([1, 4, 9]),
        "labels": torch.randint(0, VOCABULARY, (3, 3)),
    },
    "tuple": {"return_dict": False},
}


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Mixtral"])
@pytest.mark.parametrize("case", LOSS_ARGUMENTS)
def test_loss_arguments(case: str, family: str) -> None:
    plain, patched = both(family)
    inputs = {**batch(), **LOSS_ARGUMENTS[case]}
    if case == "ignore_index":
        inputs["labels"] = inputs["labels"].masked_fill(inputs["labels"] == -100, 7)
    with _NoLogits():
        outputs = patched(**inputs)
    expected = plain(**inputs)
    torch.testing.assert_close(outputs[0], expected[0], rtol=1e-6, atol=1e-6)
    outputs[0].backward()
    expected[0].backward()
    for a, b in zip(patched.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)
    if case == "tuple":
        assert isinstance(outputs, tuple)
        assert len(outputs) == len(expected)


def test_labels_may_be_positional_and_labels_of_another_length_are_refused_as_before() -> None:
    plain, patched = both()
    ids = batch()["input_ids"]
    place = list(inspect.signature(type(plain).forward).parameters).index("labels") - 1
    arguments = [ids, *[None] * (place - 1), ids]
    assert isinstance(patched(*arguments).logits, DeferredLogits)
    torch.testing.assert_close(patched(*arguments).loss, plain(*arguments).loss, rtol=1e-6, atol=1e-6)
    for model in (plain, patched):
        with pytest.raises(ValueError, match="to match target batch_size"):
            model(input_ids=ids, labels=ids, logits_to_keep=4)


def test_logits_are_returned_where_there_is_no_training() -> None:
    plain, patched = both()
    inputs = batch()
    unlabelled = {k: v for k, v in inputs.items() if k != "labels"}
    torch.testing.assert_close(patched(**unlabelled).logits, plain(**unlabelled).logits)
    plain.eval()
    patched.eval()
    outputs = patched(**inputs)
    assert type(outputs.logits) is Tensor
    torch.testing.assert_close(outputs.logits, plain(**inputs).logits)
    torch.testing.assert_close(outputs.loss, plain(**inputs).loss)


def test_a_loss_of_the_users_own_is_kept() -> None:
    plain, patched = both()
    for model in (plain, patched):
        model.loss_function = lambda logits, labels, vocab_size, **_: F.cross_entropy(
            logits.view(-1, vocab_size), labels.view(-1), label_smoothing=0.1
        )
    inputs = batch()
    with _NoLogits():
        outputs = patched(**inputs)
    torch.testing.assert_close(outputs.loss, plain(**inputs).loss)
    for model in (plain, patched):
        model.loss_function = lambda logits, **_: logits.square().mean() + logits[..., 0].sum()
    outputs, expected = patched(**inputs), plain(**inputs)
    torch.testing.assert_close(outputs.loss, expected.loss)
    outputs.loss.backward()
    expected.loss.backward()
    torch.testing.assert_close(patched.lm_head.weight.grad, plain.lm_head.weight.grad)


def test_an_output_layer_that_is_replaced_later_is_used() -> None:
    plain, patched = both()
    for model in (plain, patched):
        torch.manual_seed(0)
        model.resize_token_embeddings(VOCABULARY + 3)
    outputs, expected = patched(**batch()), plain(**batch())
    assert type(outputs.logits) is Tensor
    torch.testing.assert_close(outputs.loss, expected.loss)


# In place, and back


def test_unpatch_restores_and_patching_twice_changes_nothing() -> None:
    model = build("Qwen3")
    classes, keys = kinds(model), [sorted(m.__dict__) for m in model.modules()]
    names = list(model.state_dict())
    expected = run(model, batch())
    first = ops.patch(model)
    once = kinds(model)
    assert once != classes
    assert ops.patch(model) == first
    assert kinds(model) == once
    assert list(model.state_dict()) == names
    run(model, batch())
    ops.unpatch(model)
    assert kinds(model) == classes
    assert [sorted(m.__dict__) for m in model.modules()] == keys
    actual = run(model, batch())
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    ops.unpatch(model)
    assert kinds(model) == classes


def test_other_models_and_random_states_are_not_touched() -> None:
    other, model = build("Llama"), build("Llama")
    expected, classes = run(other, batch()), kinds(other)
    state = torch.get_rng_state()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        report = ops.patch(model)
    assert report.counts == DENSE
    assert torch.equal(torch.get_rng_state(), state)
    assert kinds(other) == classes
    assert kinds(build("Llama")) == classes
    actual = run(other, batch())
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "wanted", [{"rms_norm"}, {"rope"}, {"swiglu"}, {"linear_cross_entropy"}, {"rope", "swiglu"}]
)
def test_ops_switch(wanted: set[str]) -> None:
    plain = build("Llama")
    patched = copy.deepcopy(plain)
    report = ops.patch(patched, ops=wanted)
    assert report.counts == {name: DENSE[name] for name in wanted}
    assert report.left == ()
    assert isinstance(patched(**batch()).logits, DeferredLogits) == ("linear_cross_entropy" in wanted)
    actual, expected = run(patched, batch()), run(plain, batch())
    assert all(error(actual[name], expected[name]) < 1e-5 for name in expected)
    assert ops.patch(patched).counts == DENSE
    assert ops.patch(build("Gemma"), ops={"swiglu"}).swapped == ()


def test_errors_name_what_is_wrong() -> None:
    model = build("Llama")
    with pytest.raises(InputError, match=r"model must be a torch.nn.Module, got dict"):
        ops.patch({})  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"names among rms_norm, rope, .*; got 'norm'"):
        ops.patch(model, ops={"norm", "rope"})
    with pytest.raises(InputError, match=r"ops must be a set of names .* got 'rope'"):
        ops.patch(model, ops="rope")
    assert ops.patch(nn.Linear(2, 2)).swapped == ()
    assert "nothing swapped" in str(ops.patch(nn.Linear(2, 2)))


# What is not recognised is left


def _left(model: nn.Module, op: str) -> dict[str, str]:
    return {entry.name: entry.reason for entry in ops.patch(model).left if entry.op == op}


def test_norms_that_compute_something_else_are_left() -> None:
    base = type(build("Llama").model.norm)
    bodies: dict[str, tuple[Callable[..., Tensor], str]] = {
        "mean": (lambda self, x: base.forward(self, x - x.mean(-1, keepdim=True)), "something else"),
        "eps": (
            lambda self, x: F.rms_norm(x, x.shape[-1:], self.weight, 10 * self.variance_epsilon),
            "something",
        ),
        "offset": (lambda self, x: F.rms_norm(x, x.shape[-1:], self.weight + 0.5, 1e-6), "something else"),
        "two": (lambda self, x, gate: base.forward(self, x) * gate, "more than one input"),
        "broken": (lambda self, x: x.nothing, "could not be probed"),
        "training": (
            lambda self, x: base.forward(self, x) * (2.0 if self.training else 1.0),
            "something else",
        ),
    }
    for name, (body, reason) in bodies.items():
        model = build("Llama").eval()
        model.model.norm.__class__ = type(f"Llama{name}RMSNorm", (base,), {"forward": body})
        left = _left(model, "rms_norm")
        assert list(left) == ["model.norm"], name
        assert reason in left["model.norm"]
    model = build("Llama")
    model.model.norm.register_parameter("bias", nn.Parameter(torch.zeros(32)))
    model.model.layers[0].input_layernorm = nn.LayerNorm(32)
    assert set(_left(model, "rms_norm")) == {"model.norm", "model.layers.0.input_layernorm"}
    assert ops.patch(nn.Sequential(nn.RMSNorm(8, eps=1e-5))).counts == {"rms_norm": 1}


def test_mlps_that_compute_something_else_are_left() -> None:
    model = build("Llama", hidden_act="gelu")
    assert set(_left(model, "swiglu").values()) == {
        "its activation is neither SiLU nor the tanh form of GELU"
    }
    model = build("Llama")
    model.model.layers[0].mlp.dropout = nn.Dropout(0.1)
    assert "more than projections and an activation: dropout" in _left(model, "swiglu")["model.layers.0.mlp"]
    mlp = type(build("Llama").model.layers[0].mlp)
    model = build("Llama")
    model.model.layers[1].mlp.__class__ = type(
        "ScaledMLP", (mlp,), {"forward": lambda self, x: mlp.forward(self, x) * 1.01}
    )
    assert _left(model, "swiglu") == {"model.layers.1.mlp": "computes something else than swiglu"}


def test_limits_far_from_usual_values_are_seen() -> None:
    def limited_mlp(self: Any, x: Tensor) -> Tensor:
        gate, up = self.act_fn(self.gate_proj(x).clamp(max=10.0)), self.up_proj(x).clamp(-10.0, 10.0)
        return self.down_proj(gate * up)

    model = build("Llama")
    mlp = model.model.layers[0].mlp
    mlp.__class__ = type("LimitedMLP", (type(mlp),), {"forward": limited_mlp})
    assert _left(model, "swiglu") == {"model.layers.0.mlp": "computes something else than swiglu"}
    model = build("Llama")
    model.model.layers[0].mlp.act_fn = nn.Sequential(nn.Hardtanh(-8.0, 8.0), nn.SiLU())
    assert "neither SiLU nor" in _left(model, "swiglu")["model.layers.0.mlp"]
    model = build("Mixtral")
    experts = model.model.layers[0].mlp.experts

    def limited_experts(
        self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor
    ) -> Tensor:
        y = torch.zeros_like(hidden_states)
        for n, k in itertools.product(range(hidden_states.shape[0]), range(top_k_index.shape[1])):
            e = int(top_k_index[n, k])
            gate, up = (self.gate_up_proj[e] @ hidden_states[n]).chunk(2)
            hidden = F.silu(gate.clamp(max=20.0)) * up.clamp(-20.0, 20.0)
            y[n] += top_k_weights[n, k] * (self.down_proj[e] @ hidden)
        return y

    experts.__class__ = type("LimitedExperts", (type(experts),), {"forward": limited_experts})
    left = _left(model, "moe_experts")
    assert left == {"model.layers.0.mlp.experts": "computes something else than moe_experts"}


def test_swapped_modules_keep_the_names_of_their_inputs() -> None:
    model = build("Llama")
    ops.patch(model)
    x = torch.randn(2, 3, 32)
    layer = model.model.layers[0]
    assert torch.equal(layer.input_layernorm(hidden_states=x), layer.input_layernorm(x))
    assert torch.equal(layer.mlp(x=x), layer.mlp(x))


def test_rotations_that_compute_something_else_are_left() -> None:
    for family in ("Cohere", "Glm"):  # pairs (2 i, 2 i + 1)
        config = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
        config |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
        model = getattr(transformers, f"{family}ForCausalLM")(
            getattr(transformers, f"{family}Config")(**config)
        )
        plain = copy.deepcopy(model)
        assert "something else than rope" in _left(model, "rope")["model.layers.0.self_attn"]
        actual, expected = run(model.train(), batch()), run(plain.train(), batch())
        assert all(error(actual[name], expected[name]) < 1e-5 for name in expected)
    model = build("Llama")
    kind = type(model.model.rotary_emb)

    def forward(self: Any, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = kind.forward(self, x, position_ids)
        return cos * torch.linspace(0.9, 1.1, 8), sin

    model.model.rotary_emb.__class__ = type("OddRotaryEmbedding", (kind,), {"forward": forward})
    assert "not two equal halves" in _left(model, "rope")["model.layers.0.self_attn"]


def test_rotations_of_a_part_of_the_features() -> None:
    rope = {"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5}
    plain = build("Phi3", rope_parameters=rope) if transformers.__version__ >= "5" else build("Phi3")
    patched = copy.deepcopy(plain)
    assert ops.patch(patched).counts == DENSE
    actual, expected = run(patched, batch()), run(plain, batch())
    assert all(error(actual[name], expected[name]) < 1e-5 for name in expected)


def test_a_model_on_the_meta_device_is_patched_before_it_has_weights() -> None:
    config = build("Qwen3").config
    with torch.device("meta"):
        model = transformers.Qwen3ForCausalLM(config)
        assert ops.patch(model).counts == DENSE | {"rms_norm": 9}
    assert next(model.parameters()).is_meta


@pytest.mark.parametrize("kind", ["yarn", "llama3", "linear", "dynamic"])
def test_scaled_rotations(kind: str) -> None:
    rope = {"rope_type": kind, "factor": 4.0, "rope_theta": 10_000.0, "original_max_position_embeddings": 16}
    rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0} if kind == "llama3" else {}
    rope |= {"attention_factor": 1.3} if kind == "yarn" else {}
    if kind in ("linear", "dynamic"):
        rope.pop("original_max_position_embeddings")
    settings = {"rope_parameters": rope} if transformers.__version__ >= "5" else {"rope_scaling": rope}
    plain = build("Llama", **settings)
    patched = copy.deepcopy(plain)
    assert ops.patch(patched).counts == DENSE
    actual, expected = run(patched, batch()), run(plain, batch())
    assert all(error(actual[name], expected[name]) < 1e-5 for name in expected)


def test_losses_that_compute_something_else_are_left() -> None:
    model = build("Llama")
    model.lm_head = nn.Linear(32, VOCABULARY)
    assert "has a bias" in _left(model, "linear_cross_entropy")[""]
    model = build("Llama")
    model.lm_head.__class__ = type(
        "Linear4bit", (nn.Linear,), {"forward": lambda self, x: F.linear(x, self.weight)}
    )
    assert "a Linear4bit" in _left(model, "linear_cross_entropy")[""]
    model, base = build("Llama"), type(build("Llama"))

    def penalised(self: Any, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
        outputs = base.forward(self, *args, labels=labels, **kwargs)
        outputs.loss = outputs.loss + outputs.logits.square().mean()
        return outputs

    model.__class__ = type("PenalisedForCausalLM", (base,), {"forward": penalised})
    assert "does more with logits" in _left(model, "linear_cross_entropy")[""]
    model = build("Llama")
    forward = model.forward
    model.forward = lambda *args, **kwargs: forward(*args, **kwargs)
    assert "replaced on the instance" in _left(model, "linear_cross_entropy")[""]


def test_an_unknown_architecture_gets_what_fits() -> None:
    config = transformers.GPTNeoXConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    plain = transformers.GPTNeoXForCausalLM(config).train()
    patched = copy.deepcopy(plain)
    report = ops.patch(patched)
    assert report.counts == {"rope": 2, "linear_cross_entropy": 1}
    assert {entry.op for entry in report.left} == {"rms_norm", "swiglu"}
    assert "left as it was:" in str(report)
    torch.manual_seed(0)
    expected = run(plain.eval(), batch())
    actual = run(patched.eval(), batch())
    assert all(error(actual[name], expected[name]) < 1e-5 for name in expected)


# Copies, files, wrappers


def test_copies_and_pickles_are_patched_alike(tmp_path: Path) -> None:
    _, model = both("Qwen3")
    expected = run(model, batch())
    torch.save(model, tmp_path / "model.pt")
    for other in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(tmp_path / "model.pt", weights_only=False),
    ):
        assert kinds(other) == kinds(model)
        actual = run(other, batch())
        assert all(torch.equal(actual[name], expected[name]) for name in expected)
        with torch.no_grad():
            other.model.norm.weight.zero_()  # its own, not that of the first
        assert run(other, batch())["logits"].abs().max() == 0.0
    assert all(torch.equal(run(model, batch())[name], expected[name]) for name in expected)


def test_files_are_those_of_the_unpatched_model(tmp_path: Path) -> None:
    plain, patched = both()
    patched.save_pretrained(tmp_path / "patched")
    plain.save_pretrained(tmp_path / "plain")
    assert (tmp_path / "patched/config.json").read_text() == (tmp_path / "plain/config.json").read_text()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "patched")
    assert type(loaded) is type(plain)
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), plain.parameters(), strict=True))
    patched.load_state_dict(plain.state_dict())


def test_hidden_states_and_attentions_are_recorded() -> None:
    plain, patched = (model.eval() for model in both("Mixtral"))
    options = {"output_hidden_states": True, "output_attentions": True, "output_router_logits": True}
    for model in (plain, patched):
        model.set_attn_implementation("eager")
    outputs, expected = patched(**batch(), **options), plain(**batch(), **options)
    for field in ("hidden_states", "attentions", "router_logits"):
        assert len(outputs[field]) == len(expected[field]) >= LAYERS
        for a, b in zip(outputs[field], expected[field], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ["Llama", "Gemma2", "Qwen3Moe"])
def test_generate_gives_the_same_tokens(family: str) -> None:
    plain, patched = (model.eval() for model in both(family))
    inputs = {k: v[:, :6] for k, v in batch().items() if k in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 20, "do_sample": False, "eos_token_id": None}
    expected = plain.generate(**inputs, **options)
    assert torch.equal(patched.generate(**inputs, **options), expected)
    assert torch.equal(patched.generate(**inputs, **options, use_cache=False), expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing(use_reentrant: bool) -> None:
    plain, patched = both("Qwen3")
    expected = run(patched, batch())
    patched.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    patched.enable_input_require_grads()
    actual = run(patched, batch())
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    plain.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    ops.patch(plain)
    actual = run(plain, batch())
    assert all(torch.equal(actual[name], expected[name]) for name in expected if name in actual)
