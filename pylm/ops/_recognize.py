"""What tells that a module computes what an op computes, and the forward that calls the op.

A class's own forward is run on small random numbers, in a copy of the module with small random weights, and
compared with the op. Names only say where to look.

Shapes: B batch, T time, H heads, C features of a head, R rotated features, D model dimension; for experts N
tokens, K choices of each, E experts, H model dimension, I hidden dimension.
"""

import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pylm.ops._deferred import DEFERS, DeferredLogits, Request, is_plain
from pylm.ops._rebind import find_global, rebind_global
from pylm.ops._swap import Swap, Verdict, original, set_class, swap_of, swapped_class, why_not_effective
from pylm.ops.gated import geglu, swiglu
from pylm.ops.moe import Routing, moe_experts
from pylm.ops.norm import rms_norm
from pylm.ops.rotary import rope

_ROTATION = "apply_rotary_pos_emb"
_SWAPPED_ROTATION = "_pylm_apply_rotary_pos_emb"
# The probes compare float32 results of about 1; a sum of up to 16,384 squares rounds to 1e-5 of it.
_TOLERANCE = 1e-4


@contextmanager
def probing() -> Iterator[None]:
    """Compute on the CPU without leaving traces: random states, gradients, autocast."""
    with (
        torch.device("cpu"),
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),  # its tensors count no writes, which DeferredLogits looks at
        torch.no_grad(),
        torch.autocast("cpu", enabled=False),
    ):
        torch.manual_seed(0)
        yield


def _randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float32)


def _small_linear(in_features: int, out_features: int) -> nn.Linear:
    return nn.Linear(in_features, out_features, bias=False, dtype=torch.float32)


def _clone(module: nn.Module, *, training: bool) -> Any:
    """Copy a module without its tensors' contents: what is put into the copy is not seen by the module."""
    clone = object.__new__(original(type(module)))
    clone.__dict__.update(module.__dict__)
    for key in ("_parameters", "_buffers", "_modules"):
        clone.__dict__[key] = dict(module.__dict__[key])
    for key in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"):
        clone.__dict__[key] = type(module.__dict__[key])()
    for key in ("forward", "_old_forward", "_hf_hook"):
        clone.__dict__.pop(key, None)
    clone.__dict__["training"] = training
    return clone


def _agree(actual: Any, expected: Tensor) -> bool:
    return (
        isinstance(actual, Tensor)
        and actual.shape == expected.shape
        and torch.allclose(
            actual.float(),
            expected.float(),
            rtol=_TOLERANCE,
            atol=_TOLERANCE * max(1.0, float(expected.detach().abs().max())),
        )
    )


def _say(error: Exception) -> str:
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text[:100]}"


def _num_inputs(function: Callable[..., Any]) -> int:
    """Count the parameters after self; several for *args."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    stars = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return sum(2 if p.kind in stars else 1 for p in parameters)


# RMSNorm


def recognize_norm(module: nn.Module) -> Verdict:
    kind = type(module)
    if "norm" not in kind.__name__.lower() or module._modules:
        return None
    eps_name = next(
        (n for n in ("variance_epsilon", "eps") if isinstance(getattr(module, n, None), float)), None
    )
    tensors = {n for n, p in (*module._parameters.items(), *module._buffers.items()) if p is not None}
    weight = module._parameters.get("weight")
    if eps_name is None or tensors != {"weight"} or weight is None or weight.dim() != 1:
        return "not an RMSNorm: needs a weight (D,), an eps and no other tensor"
    if _num_inputs(kind.forward) != 1:
        return "its forward takes more than one input"
    dim = weight.shape[0]
    gain = 1.0 + 0.5 * _randn(dim)
    # Rows as small as the root of eps show where eps is added.
    x = _randn(2, 3, dim) * torch.tensor([1e-3, 1.0, 30.0]).unsqueeze(1)
    results = []
    for training in (False, True):
        clone = _clone(module, training=training)
        clone._parameters["weight"] = nn.Parameter(gain)
        try:
            results.append(clone.forward(x))
        except Exception as error:
            return f"its forward could not be probed ({_say(error)})"
    for offset in (0.0, 1.0):
        expected = rms_norm(x, gain, eps=getattr(module, eps_name), weight_offset=offset)
        if all(_agree(y, expected) for y in results):
            return Swap(kind, "rms_norm", _norm_forward, (eps_name, offset))
    return "computes something else than rms_norm"


def _norm_forward(base: Any, eps_name: str, weight_offset: float) -> Callable[..., Any]:
    def forward(self: Any, *args: Tensor, **named: Tensor) -> Tensor:
        (x,) = (*args, *named.values())  # by whatever name the base has for it
        if not is_plain(x, self.weight):
            y: Tensor = base.forward(self, x)
            return y
        return rms_norm(x, self.weight, eps=getattr(self, eps_name), weight_offset=weight_offset)

    return forward


# Rotary positions


def recognize_rotation(module: nn.Module) -> Verdict:
    found = find_global(type(module).forward, r"apply.*rotary")
    if found is None:
        return None
    name, namespace = found
    if name != _ROTATION:
        return f"rotates by {name}, which is not known"
    reason = _why_not_rope(namespace[name])
    return Swap(type(module), "rope", _attention_forward) if reason is None else reason


def why_not_tables(model: nn.Module) -> str | None:
    """Tell why the tables of a model may not be what `rope` takes: cosines of (B, T, R), halves alike."""
    modules = {type(m): m for m in model.modules() if "RotaryEmbedding" in type(m).__name__}
    if not modules:
        return "there is no rotary embedding module to check the tables of"
    for kind, module in modules.items():
        try:
            for table in _small_tables(module):
                first, second = table.chunk(2, -1)
                if table.dim() != 3 or table.shape[1] != 3 or not torch.equal(first, second):
                    return f"{kind.__name__} gives tables that are not two equal halves"
        except Exception as error:
            return f"{kind.__name__} could not be probed ({_say(error)})"
    return None


def _small_tables(module: Any) -> Iterator[Tensor]:
    """Yield cosines and sines of three positions, of every type of layer."""
    # Made anew, since the module's own may be on the meta device, and may change by being called.
    fresh = type(module)(module.config)
    x, positions = _randn(1, 3, 8), torch.arange(3).unsqueeze(0)
    if "layer_type" in inspect.signature(fresh.forward).parameters:
        for layer_type in fresh.layer_types:
            yield from fresh(x, positions, layer_type)
    else:
        yield from fresh(x, positions)


@functools.cache
def _why_not_rope(rotation: Callable[..., Any]) -> str | None:
    q, k = _randn(2, 3, 5, 8), _randn(2, 1, 5, 8)
    for num_rotated in (8, 4):
        angles = _randn(2, 5, num_rotated // 2)
        cos, sin = (torch.cat((t, t), -1) for t in (angles.cos(), angles.sin()))
        try:
            results = rotation(q, k, cos, sin)
        except Exception as error:
            if num_rotated < 8:
                break  # made for all features of a head
            return f"{_ROTATION} could not be probed ({_say(error)})"
        expected = _rotate(q, k, cos, sin, heads_first=True)
        if len(results) != 2 or not all(map(_agree, results, expected)):
            return f"{_ROTATION} computes something else than rope"
    return None


def _rotate(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, heads_first: bool) -> tuple[Tensor, Tensor]:
    """Call `rope` on q, k (B, H, T, C) or (B, T, H, C) with cos, sin (1 or B, T, R), halves alike."""
    batch, time, num_rotated = cos.shape
    table = batch * time, num_rotated // 2
    cos, sin = (t[..., : num_rotated // 2].reshape(table) for t in (cos, sin))
    positions = None if batch == 1 else torch.arange(batch * time, device=q.device).view(batch, time)
    if not heads_first:
        return rope(q, k, cos, sin, position_ids=positions)
    q, k = rope(q.transpose(1, 2), k.transpose(1, 2), cos, sin, position_ids=positions)
    return q.transpose(1, 2), k.transpose(1, 2)


def _swapped_rotation(rotation: Callable[..., Any]) -> Callable[..., Any]:
    def apply_rotary_pos_emb(
        q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *args: Any, unsqueeze_dim: int = 1, **kwargs: Any
    ) -> Any:
        fits = (
            not args
            and not kwargs
            and unsqueeze_dim in (1, 2)
            and is_plain(q, k, cos, sin)
            and q.dim() == 4
            and cos.dim() == 3
            and cos.shape[0] in (1, q.shape[0])
            and cos.shape[1] == q.shape[2 if unsqueeze_dim == 1 else 1]
            and q.dtype == k.dtype
        )
        if not fits:
            return rotation(q, k, cos, sin, *args, unsqueeze_dim=unsqueeze_dim, **kwargs)
        return _rotate(q, k, cos, sin, heads_first=unsqueeze_dim == 1)

    return apply_rotary_pos_emb


def _attention_forward(base: Any) -> Callable[..., Any]:
    found = find_global(base.forward, _ROTATION + "$")
    assert found is not None
    namespace = found[1]
    if _SWAPPED_ROTATION not in namespace:
        namespace[_SWAPPED_ROTATION] = _swapped_rotation(namespace[_ROTATION])
    return rebind_global(base.forward, _ROTATION, _SWAPPED_ROTATION)


# Gated MLPs

# Names of the layers for gate, up and down; of the packed layer for gate and up, and down.
_MLP_LAYERS = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"), ("gate_up_proj", "down_proj"))
# Small inputs show the activation, large ones a limit of it.
_SCALES = (1.0, 64.0)
_GATED: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {"swiglu": swiglu, "geglu": geglu}


def recognize_mlp(module: nn.Module) -> Verdict:
    kind, children = type(module), set(module._modules)
    act_name = next((n for n in ("act_fn", "activation_fn") if callable(getattr(module, n, None))), None)
    layers = next((names for names in _MLP_LAYERS if set(names) <= children), None)
    if layers is None or act_name is None:
        return "not gate_proj, up_proj, down_proj and act_fn" if kind.__name__.endswith("MLP") else None
    extra = children - {*layers, act_name} | {n for n, p in module._parameters.items() if p is not None}
    if extra:
        return f"has more than projections and an activation: {', '.join(sorted(extra))}"
    if _num_inputs(kind.forward) != 1:
        return "its forward takes more than one input"
    op = _gated_op(getattr(module, act_name))
    if op is None:
        return "its activation is neither SiLU nor the tanh form of GELU"
    packed = len(layers) == 2
    projections = [_small_linear(8, 24)] if packed else [_small_linear(8, 12), _small_linear(8, 12)]
    down = _small_linear(12, 8)
    x = 4.0 * _randn(2, 3, 8)

    def expected(x: Tensor) -> Tensor:
        gate, up = torch.cat([layer(x) for layer in projections], -1).chunk(2, -1)
        y: Tensor = down(_GATED[op](gate, up))
        return y

    for training in (False, True):
        clone = _clone(module, training=training)
        clone._modules.update(zip(layers, (*projections, down), strict=True))
        try:
            if not all(_agree(clone.forward(scale * x), expected(scale * x)) for scale in _SCALES):
                return f"computes something else than {op}"
        except Exception as error:
            return f"its forward could not be probed ({_say(error)})"
    return Swap(kind, op, _mlp_forward, (op, layers, act_name))


def _gated_op(activation: Callable[[Tensor], Tensor]) -> str | None:
    """Tell which op has this activation. The two forms of GELU are 5e-4 apart at most."""
    # Far out too, where a limit would show.
    points = torch.cat((torch.linspace(-6.0, 6.0, 1001), torch.linspace(-1e3, 1e3, 401))).float()
    for op, gated in _GATED.items():
        if torch.allclose(activation(points), gated(points, torch.ones_like(points)), rtol=1e-5, atol=1e-5):
            return op
    return None


def _mlp_forward(base: Any, op: str, layers: tuple[str, ...], act_name: str) -> Callable[..., Any]:
    *projections, down = layers
    gated = _GATED[op]

    def forward(self: Any, *args: Tensor, **named: Tensor) -> Tensor:
        (x,) = (*args, *named.values())
        outputs = [getattr(self, name)(x) for name in projections]
        gate, up = outputs if len(outputs) == 2 else outputs[0].chunk(2, -1)
        # An adapter may have given one of them another dtype.
        if gate.dtype == up.dtype and is_plain(gate, up):
            hidden = gated(gate, up)
        else:
            hidden = getattr(self, act_name)(gate) * up
        y: Tensor = getattr(self, down)(hidden)
        return y

    return forward


# Experts


def recognize_experts(module: nn.Module) -> Verdict:
    kind = type(module)
    shapes = {n: tuple(p.shape) for n, p in module._parameters.items() if p is not None}
    if not {"gate_up_proj", "down_proj"} <= set(shapes):
        is_list = (
            isinstance(module, nn.ModuleList) and len(module) > 0 and _MLP_LAYERS[1][0] in module[0]._modules
        )
        return "a list of experts; moe_experts takes their weights in one tensor" if is_list else None
    if set(shapes) != {"gate_up_proj", "down_proj"} or module._buffers:
        return f"has more than gate_up_proj and down_proj: {', '.join(sorted({*shapes, *module._buffers}))}"
    if any(len(shape) != 3 for shape in shapes.values()) or not callable(getattr(module, "act_fn", None)):
        return "not gate_up_proj (E, 2 I, H), down_proj (E, H, I) and act_fn"
    if list(inspect.signature(kind.forward).parameters)[1:] != [
        "hidden_states",
        "top_k_index",
        "top_k_weights",
    ]:
        return "its forward takes other inputs than hidden_states, top_k_index, top_k_weights"
    if _gated_op(module.act_fn) != "swiglu":  # type: ignore[arg-type]
        return "its activation is not SiLU"
    x, gate_up, down = _randn(5, 8), _randn(3, 12, 8), _randn(3, 8, 6)
    index = torch.tensor([[0, 2], [2, 0], [0, 1], [2, 1], [0, 2]])
    weight = _randn(5, 2).abs()
    for training in (False, True):
        clone = _clone(module, training=training)
        clone._parameters.update(gate_up_proj=nn.Parameter(gate_up), down_proj=nn.Parameter(down))
        clone.__dict__["num_experts"] = 3
        try:
            # Below the wrapper that chooses an implementation lies what defines the result.
            for scale in _SCALES:
                actual = inspect.unwrap(kind.forward)(clone, scale * x, index, weight)
                if not _agree(actual, _run_experts(scale * x, index, weight, gate_up, down)):
                    return "computes something else than moe_experts"
        except Exception as error:
            return f"its forward could not be probed ({_say(error)})"
    return Swap(kind, "moe_experts", _experts_forward)


def _run_experts(x: Tensor, index: Tensor, weight: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Call `moe_experts` on x (N, H) with the choices index and their weight, both (N, K)."""
    choices = index.reshape(-1)
    load = torch.zeros(gate_up.shape[0], dtype=torch.int32, device=x.device)
    load = load.scatter_add(0, choices, torch.ones_like(choices, dtype=torch.int32))
    order = choices.sort(stable=True).indices.to(torch.int32)
    offsets = torch.cat((load.new_zeros(1), load.cumsum(0, dtype=torch.int32)))
    zero = weight.new_zeros(())
    wide = weight if weight.dtype == torch.float64 else weight.float()
    routing = Routing(wide, index, order, offsets, load, zero, zero)
    return moe_experts(x, routing, gate_up, down)


def _experts_forward(base: Any) -> Callable[..., Any]:
    def forward(self: Any, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        weights = self.gate_up_proj, self.down_proj
        is_here = is_plain(hidden_states, *weights) and not getattr(self, "_is_expert_parallel", False)
        if not is_here or hidden_states.dim() != 2:
            y: Tensor = base.forward(self, hidden_states, top_k_index, top_k_weights)
            return y
        return _run_experts(hidden_states, top_k_index, top_k_weights, *weights)

    return forward


# The loss of a causal language model


def recognize_causal_lm(module: nn.Module) -> Verdict:
    kind = type(module)
    if not (hasattr(kind, "get_output_embeddings") and hasattr(kind, "loss_function")):
        return None
    if "labels" not in inspect.signature(kind.forward).parameters:
        return None
    head: Any = module.get_output_embeddings()  # type: ignore[operator]
    if head is None:
        return None
    head_name = next((n for n, child in module.named_children() if child is head), None)
    if head_name is None:
        return "its output layer is not a direct child"
    if not isinstance(head, nn.Linear) or original(type(head)).forward is not nn.Linear.forward:
        return f"its output layer is a {type(head).__name__}, not a torch.nn.Linear"
    if head._parameters.get("bias") is not None:
        return "its output layer has a bias"
    if why_not_effective(head) is not None:
        return "the forward of its output layer was replaced on the instance"
    reason = _why_not_deferred(module, head_name, head.weight.shape[0])
    if reason is not None:
        return reason
    child = head_name, _head_forward
    return Swap(kind, "linear_cross_entropy", _causal_lm_forward, (head_name,), child)


class _BodyOutput:
    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: Any) -> Tensor:
        return self.last_hidden_state

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class _Body(nn.Module):
    """What a probe has in place of the decoder: known hidden states, whatever is asked."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _BodyOutput(self.hidden)


def _why_not_deferred(module: Any, head_name: str, num_classes: int) -> str | None:
    """Run the model's own forward on a stub of its decoder, with logits and without."""
    hidden, labels = _randn(2, 4, 8), torch.randint(0, num_classes, (2, 4))
    labels[0, 1] = -100
    options: dict[str, Any] = {"labels": labels, "input_ids": labels.clamp(min=0)}
    if "output_router_logits" in inspect.signature(type(module).forward).parameters:
        options["output_router_logits"] = False
    plain, deferred = _small_linear(8, num_classes), _small_linear(8, num_classes)
    deferred.weight.copy_(plain.weight.mul_(10.0))
    set_class(deferred, swapped_class(Swap(nn.Linear, "", _head_forward)))
    setattr(deferred, DEFERS, True)
    try:
        results = []
        for head in (plain, deferred):
            clone = _clone(module, training=True)
            clone._modules.update({module.base_model_prefix: _Body(hidden), head_name: head})
            results.append(clone.forward(**options))
        logits = results[1].logits
        if not isinstance(logits, DeferredLogits) or logits.is_computed:
            return "its forward does more with logits than a soft cap and a cross entropy"
        agrees = _agree(results[1].loss, results[0].loss) and _agree(logits.materialize(), results[0].logits)
    except Exception as error:
        return f"its forward could not be probed ({_say(error)})"
    return None if agrees else "computes another loss than linear_cross_entropy"


def _causal_lm_forward(base: Any, head_name: str) -> Callable[..., Any]:
    place = list(inspect.signature(base.forward).parameters).index("labels") - 1

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        labels = args[place] if len(args) > place else kwargs.get("labels")
        has_labels = labels is not None or kwargs.get("shift_labels") is not None
        head = getattr(self, head_name)
        # A replica of DataParallel must return tensors.
        if not (self.training and has_labels) or swap_of(head) is None or hasattr(self, "_is_replica"):
            return base.forward(self, *args, **kwargs)
        setattr(head, DEFERS, True)
        try:
            return base.forward(self, *args, **kwargs)
        finally:
            setattr(head, DEFERS, False)

    return forward


def _head_forward(base: Any) -> Callable[..., Any]:
    def forward(self: Any, input: Tensor, request: Request | None = None) -> Any:
        if request is not None:
            return request(input, self.weight)
        if getattr(self, DEFERS, False) and is_plain(input, self.weight):
            return DeferredLogits(self, input)
        return base.forward(self, input)

    return forward
