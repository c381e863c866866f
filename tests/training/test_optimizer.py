"""AdamW and its learning rate against torch and Hugging Face's Trainer; what decays, and how fast each part learns."""

import math
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
import small_run

from victor_jax.training import settings
from victor_jax.training.optimizer import in_float32, is_decayed, learning_rate, make_optimizer, update

torch = pytest.importorskip("torch", reason="the reference is torch's AdamW, whose CPU build exists for Python 3.11")
transformers = pytest.importorskip("transformers")

OPTIMIZER = settings.read(small_run.config_of({"optimizer.weight_decay": 0.1})).optimizer
# Of each kind of parameter one: whether Hugging Face's Trainer decays it.
DECAYED = {
    "language/embedding": True,
    "language/head": True,
    "language/norm/scale": False,
    "language/stages_0_0/attention/q/kernel": True,
    "language/stages_0_0/attention/q/bias": False,
    "language/stages_0_0/attention/q/lora_a": True,
    "language/stages_0_0/attention/q/lora_b": True,
    "language/stages_0_0/norm1/scale": False,
    "projector/linear_1/kernel": True,
    "projector/linear_1/bias": False,
    "compression/registers": False,
    "compression/queries/kernel": False,
}
STEPS = 5


def arrays(seed):
    rng = np.random.default_rng(seed)
    return {path: rng.normal(size=(2, 3, 4)).astype(np.float32) for path in DECAYED}


def ours(chosen, rates):
    params = {path: jnp.asarray(array) for path, array in arrays(0).items()}
    optimizer = make_optimizer(chosen, params)
    state = optimizer.init(in_float32(params))
    for step, rate in enumerate(rates, start=1):
        grads = {path: jnp.asarray(array) for path, array in arrays(step).items()}
        params, state = update(optimizer, grads, state, params, jnp.float32(rate))
    return params


def torchs(chosen, rates, ratio=1.0):
    params = {path: torch.nn.Parameter(torch.tensor(array)) for path, array in arrays(0).items()}
    groups = [
        {
            "params": [param],
            "weight_decay": chosen.weight_decay if DECAYED[path] else 0.0,
            "ratio": ratio if path.startswith(("projector", "compression")) else 1.0,
        }
        for path, param in params.items()
    ]
    optimizer = torch.optim.AdamW(groups, betas=(chosen.b1, chosen.b2), eps=chosen.eps)
    for step, rate in enumerate(rates, start=1):
        for group in optimizer.param_groups:
            group["lr"] = rate * group["ratio"]
        for path, array in arrays(step).items():
            params[path].grad = torch.tensor(array)
        torch.nn.utils.clip_grad_norm_(params.values(), chosen.clip_norm)
        optimizer.step()
    return params


@pytest.mark.parametrize("own", [0.0, 0.004])
def test_adamw_equals_torch_with_what_hugging_face_decays(own):
    chosen = replace(OPTIMIZER, learning_rate=0.01, projector_learning_rate=own, weight_decay=0.3)
    rates = [learning_rate(chosen, step, STEPS) for step in range(STEPS)]
    found, wanted = ours(chosen, rates), torchs(chosen, rates, own / 0.01 if own else 1.0)
    for path, param in wanted.items():
        np.testing.assert_allclose(found[path], param.detach().numpy(), rtol=2e-6, atol=2e-6, err_msg=path)


def test_a_first_moment_in_bfloat16_is_rounded_once_a_step_and_all_arithmetic_is_float32():
    chosen = replace(OPTIMIZER, weight_decay=0.0, clip_norm=1e9, mu_dtype="bfloat16")
    params = {path: jnp.asarray(array) for path, array in arrays(0).items()}
    optimizer = make_optimizer(chosen, params)
    state = optimizer.init(in_float32(params))
    wanted = {path: np.float64(array) for path, array in arrays(0).items()}
    mu, nu = ({path: np.zeros_like(array) for path, array in wanted.items()} for _ in range(2))
    for step in range(1, STEPS + 1):
        grads = arrays(step)
        params, state = update(
            optimizer, {p: jnp.asarray(g) for p, g in grads.items()}, state, params, jnp.float32(0.1)
        )
        for path, grad in grads.items():
            moment = chosen.b1 * mu[path] + (1 - chosen.b1) * grad
            nu[path] = chosen.b2 * nu[path] + (1 - chosen.b2) * grad**2
            scale = np.sqrt(nu[path] / (1 - chosen.b2**step)) + chosen.eps
            wanted[path] -= 0.1 * moment / (1 - chosen.b1**step) / scale
            mu[path] = moment.astype(np.float32).astype(jnp.bfloat16).astype(np.float64)
    for path, array in wanted.items():
        assert (state[1].mu[path].dtype, state[1].nu[path].dtype) == (jnp.bfloat16, jnp.float32)
        np.testing.assert_array_equal(state[1].mu[path], mu[path].astype(jnp.bfloat16), err_msg=path)
        np.testing.assert_allclose(params[path], array, rtol=1e-5, atol=1e-5, err_msg=path)


def test_decay_reaches_what_hugging_faces_trainer_decays():
    """By its own rule, on a LLaVA of both towers; a method's own parameters are ours, and never decay."""
    import tiny
    from transformers.trainer_pt_utils import get_parameter_names

    from victor_jax.weights.names import from_torch_name

    net = tiny.model(tiny.config("llama_gqa"))
    norms = [kind for kind in {type(module) for module in net.modules()} if "Norm" in kind.__name__]
    decayed = {name for name in get_parameter_names(net, norms) if "bias" not in name}
    checked = 0
    for key, _ in net.named_parameters():
        name = from_torch_name(key)
        if name is None:
            continue
        checked += 1
        assert is_decayed(name) == (key in decayed), (key, name)
    assert checked > 30


def test_without_a_cosine_the_rate_stays():
    chosen = replace(OPTIMIZER, learning_rate=0.5, warmup_ratio=0.2, cosine=False)
    assert [learning_rate(chosen, step, 10) for step in range(10)] == [0, 0.25, *[0.5] * 8]


@pytest.mark.parametrize(("total", "ratio"), [(20, 0.17), (7, 0.03), (12, 0.0), (1, 0.5)])
def test_the_learning_rate_is_hugging_faces_cosine(total, ratio):
    chosen = replace(OPTIMIZER, learning_rate=0.5, warmup_ratio=ratio)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    warmup = math.ceil(total * ratio)  # as the Trainer's arguments turn a ratio into steps
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, warmup, total)
    for step in range(total):
        assert learning_rate(chosen, step, total) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12), step
        optimizer.step()
        schedule.step()
