"""Tests that one step of five repairs matches a PyTorch version written from the formulas."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from d3jax.config.recipes import OptimConfig, SamConfig
from d3jax.core.random import stream
from d3jax.core.types import Batch, Model, NormLayer, Outputs, Variables
from d3jax.defenses.repair.anp import anp_loss
from d3jax.defenses.repair.ft_sam import ft_sam_loss
from d3jax.defenses.repair.ibau import IBAUConfig, perturb_loss, unlearn_loss
from d3jax.defenses.repair.nad import nad_loss
from d3jax.defenses.repair.sau import SAUConfig, sau_loss
from d3jax.training import make_optimizer
from d3jax.training.step import TrainData, init_state, make_train_step

SIZE, CLASSES, WIDTHS = 12, 4, (5, 6)
MEAN, STD = np.float32([0.5, 0.4, 0.45]), np.float32([0.25, 0.2, 0.3])
LAYERS = (
    NormLayer(("norm1",), (("conv1",),), ("conv1",), (("conv2",),), "conv1", "block1"),
    NormLayer(("norm2",), (("conv2",),), ("conv2",), (("head",),), "conv2", "block2"),
)


def apply(variables, images, *, train, edit=None):
    """Apply the network of the tests: two blocks of 3×3 conv, BatchNorm, ReLU; pool; linear."""
    params, stats, moved, features = *variables, {}, {}
    x = (images - MEAN) / STD
    for i in ("1", "2"):
        kernel, norm = params["conv" + i]["kernel"], params["norm" + i]
        features["conv" + i] = x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), ((1, 1), (1, 1)), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        stored = stats["norm" + i]
        batch = {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))}
        used = batch if train else stored
        moved["norm" + i] = {
            k: 0.9 * stored[k] + 0.1 * batch[k] if train else stored[k] for k in used
        }
        x = (x - used["mean"]) / jnp.sqrt(used["var"] + 1e-5) * norm["scale"] + norm["bias"]
        features["norm" + i] = x
        features["block" + i] = x = jax.nn.relu(x)
    features["penultimate"] = x = x.mean((1, 2))
    logits = x @ params["head"]["kernel"] + params["head"]["bias"]
    return Outputs(logits, features, moved)


def activations():
    """Return the shapes of the network's activations for one image."""
    found = {"penultimate": jax.ShapeDtypeStruct((WIDTHS[1],), jnp.float32)}
    for i, width in enumerate(WIDTHS, 1):
        for name in ("conv", "norm", "block"):
            found[f"{name}{i}"] = jax.ShapeDtypeStruct((6, 6, width), jnp.float32)
    return found


def draw_variables(seed):
    """Return random variables of the network, with running statistics away from 0 and 1."""
    rng = np.random.default_rng(seed)
    params, stats, fan = {}, {}, 3
    for i, width in enumerate(WIDTHS, 1):
        params[f"conv{i}"] = {"kernel": rng.normal(0, (2 / (9 * fan)) ** 0.5, (3, 3, fan, width))}
        params[f"norm{i}"] = {
            "scale": rng.uniform(0.5, 1.5, width),
            "bias": rng.normal(0, 0.3, width),
        }
        stats[f"norm{i}"] = {"mean": rng.normal(0, 0.2, width), "var": rng.uniform(0.5, 2, width)}
        fan = width
    params["head"] = {
        "kernel": rng.normal(0, 2, (fan, CLASSES)),
        "bias": rng.normal(0, 0.5, CLASSES),
    }
    return Variables(*jax.tree.map(np.float32, (params, stats)))


def perturbed(variables, size, seed):
    """Return variables with normal noise of a size relative to each parameter added."""
    rng = np.random.default_rng(seed)
    noisy = jax.tree.map(
        lambda leaf: np.float32(leaf + size * np.abs(leaf) * rng.normal(size=leaf.shape)),
        variables.params,
    )
    return variables._replace(params=noisy)


def centred(variables, images):
    """Return variables whose logits are 0 in the mean over images, so that all classes occur."""
    mean = np.asarray(apply(variables, images, train=False).logits).mean(0)
    head = variables.params["head"]
    moved = {"kernel": head["kernel"], "bias": head["bias"] - mean}
    return variables._replace(params=variables.params | {"head": moved})


def draw_batch(seed):
    """Return a batch of random images and labels."""
    rng = np.random.default_rng(seed)
    images = np.float32(rng.uniform(0, 1, (SIZE, 6, 6, 3)))
    labels = np.int32(rng.integers(0, CLASSES, SIZE))
    return Batch(images, labels, np.zeros(SIZE, bool))


MODEL = Model(lambda key: draw_variables(0), apply, activations, LAYERS)
KEY = jax.random.key(7)


class Net(NamedTuple):
    """The network of the tests in PyTorch, in double precision; without `stats` in train mode."""

    torch: object
    stats: object = None

    def features(self, params, normalised):
        """Return the logits and the activations [B, c, H, W] of normalised images [B, H, W, 3]."""
        functional, found = self.torch.nn.functional, {}
        x = normalised.permute(0, 3, 1, 2)
        for i in ("1", "2"):
            kernel, norm = params["conv" + i]["kernel"], params["norm" + i]
            x = functional.conv2d(x, kernel.permute(3, 2, 0, 1), padding=1)
            stored = (None, None)
            if self.stats is not None:
                stored = self.stats["norm" + i]["mean"], self.stats["norm" + i]["var"]
            x = functional.batch_norm(
                x, *stored, norm["scale"], norm["bias"], training=self.stats is None, eps=1e-5
            )
            found["norm" + i] = x
            found["block" + i] = x = functional.relu(x)
        logits = x.mean((2, 3)) @ params["head"]["kernel"] + params["head"]["bias"]
        return logits, found

    def logits(self, params, normalised):
        """Return the logits of normalised images."""
        return self.features(params, normalised)[0]

    def normalised(self, images):
        """Return pixels in [0, 1] as the network's inputs."""
        return (images - self.torch.tensor(MEAN)) / self.torch.tensor(STD)


def tensors(torch, tree, trained=False):
    """Return a tree of arrays as tensors: floats in double precision, with `trained` as leaves."""

    def convert(leaf):
        array = np.array(leaf)
        if array.dtype.kind != "f":
            return torch.tensor(np.int64(array))
        return torch.tensor(np.float64(array), requires_grad=trained)

    return jax.tree.map(convert, tree)


def gradients(torch, value, tree, **options):
    """Return the gradients of a tensor by the leaves of a tree, as a tree."""
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, torch.autograd.grad(value, leaves, **options))


def error_of(ours, theirs):
    """Return the largest error of a tree of arrays, relative to the largest entry of each array."""

    def one(a, b):
        b = b.detach().numpy()
        assert np.shape(a) == b.shape
        return float(np.abs(np.float64(a) - b).max() / np.abs(b).max())

    return np.max(jax.tree.leaves(jax.tree.map(one, ours, theirs)))  # NaN if any is


# --- the published formulas in PyTorch


def smoothed_kl(torch, logits, labels, smoothing):
    """Return FT-SAM's loss KL(t ‖ softmax), the mean over the batch."""
    wanted = torch.full_like(logits, smoothing / (CLASSES - 1))
    wanted[torch.arange(len(labels)), labels] = 1 - smoothing
    divergence = (wanted * (wanted.log() - logits.log_softmax(1))).sum(1)
    return divergence.mean()


def ft_sam_steps(torch, params, images, labels, steps):
    """Return parameters and momentum after steps of adaptive SAM (ρ 2) with SGD."""
    net = Net(torch)
    rho, lr, momentum, decay = 2.0, 0.01, 0.9, 5e-4
    w, structure = jax.tree.flatten(params)
    buffers = [torch.zeros_like(leaf) for leaf in w]

    def gradient(leaves):
        leaves = [leaf.detach().requires_grad_() for leaf in leaves]
        logits = net.logits(jax.tree.unflatten(structure, leaves), net.normalised(images))
        return torch.autograd.grad(smoothed_kl(torch, logits, labels, 0.1), leaves)

    for _ in range(steps):
        g = gradient(w)
        norm = sum(((a.abs() * b) ** 2).sum() for a, b in zip(w, g, strict=True)).sqrt()
        ascent = [rho * a**2 * b / (norm + 1e-12) for a, b in zip(w, g, strict=True)]
        second = gradient([a + e for a, e in zip(w, ascent, strict=True)])
        buffers = [momentum * m + b + decay * a for m, a, b in zip(buffers, w, second, strict=True)]
        w = [a - lr * m for a, m in zip(w, buffers, strict=True)]
    return [jax.tree.unflatten(structure, part) for part in (w, buffers)]


def sau_perturbation(torch, model, copy, images, labels, bound=0.2, rate=0.2, steps=5):
    """Return SAU's perturbation of pixels; `model` and `copy` give logits of images in [0, 1]."""
    cross_entropy = torch.nn.functional.cross_entropy
    nets = (model, copy)
    with torch.no_grad():
        clean = [net(images).argmax(1) for net in nets]
    change = torch.full_like(images, bound)
    for _ in range(steps):
        change = change.detach().requires_grad_()
        logits = [net(images + change) for net in nets]
        wrong = [z.argmax(1) for z in logits]
        fooled = [a != b for a, b in zip(wrong, clean, strict=True)]
        shared = fooled[0] & fooled[1] & (wrong[0] == wrong[1])
        losses = [cross_entropy(z, labels, reduction="none") for z in logits]
        adversarial = -sum(c[~f].sum() for c, f in zip(losses, fooled, strict=True))
        p, q = [z.softmax(1).clamp(min=1e-8) for z in logits]
        middle = (p + q) / 2
        js = 0.5 * (p * p.log() + q * q.log()).sum(1) - 0.5 * ((p + q) * middle.log()).sum(1)
        total = 0.01 * adversarial / (2 * len(labels)) + js[~shared].sum() / len(labels)
        (slope,) = torch.autograd.grad(total, change)
        change = (change - rate * slope.sign()).clamp(-bound, bound)
    return change.detach()


def sau_parts(torch, model, copy, images, labels):
    """Return the three parts of SAU's loss, the copy's classes of x̃ and of x [B], and x̃."""
    cross_entropy = torch.nn.functional.cross_entropy
    changed = images + sau_perturbation(torch, model, copy, images, labels)
    clean, moved = model(images), model(changed)
    with torch.no_grad():
        k, before = copy(changed).argmax(1), copy(images).argmax(1)
    selected = (k != labels) & (k != before)
    probabilities = moved.softmax(1)
    p = probabilities[torch.arange(len(k)), k]
    others = (probabilities.sum(1) - p).clamp(max=0.999)
    terms = torch.log(1e-6 + others) + torch.log(1 + 1e-6 - p.clamp(min=0.001))
    unlearning = -terms[selected].sum() / (2 * len(labels))
    parts = cross_entropy(clean, labels), cross_entropy(moved, labels), unlearning
    return parts, k, before, changed


def anp_value(torch, params, masks, noise, images, labels, eps, alpha):
    """Return ANP's loss of the masks {layer: [c]}, after the step of the noise {layer: (w, b)}."""
    net, cross_entropy = Net(torch), torch.nn.functional.cross_entropy
    inputs = net.normalised(images)

    def loss(noise):
        changed = dict(params)
        for name, mask in masks.items():
            scale, bias = params[name]["scale"], params[name]["bias"]
            by_scale, by_bias = noise.get(name, (0.0, 0.0))
            changed[name] = {"scale": scale * (mask + by_scale), "bias": bias * (1 + by_bias)}
        return cross_entropy(net.logits(changed, inputs), labels)

    slopes = gradients(torch, -loss(noise), noise)
    with torch.no_grad():
        moved = jax.tree.map(lambda a, b: a - eps * b.sign(), noise, slopes)
    return alpha * loss({}) + (1 - alpha) * loss(moved)


def ibau_inner(torch, net, params, change, images, labels):
    """Return I-BAU's inner loss of a perturbation δ of normalised images."""
    logits = net.logits(params, net.normalised(images) + change)
    return -torch.nn.functional.cross_entropy(logits, labels) + 0.001 * (change**2).sum()


def ibau_hypergradient(torch, net, params, change, first, batch, pasted, rate):
    """Return I-BAU's L_out, v after K = 5 steps, and direct and implicit part of the gradient."""
    slope = gradients(
        torch, ibau_inner(torch, net, params, change, *first), change, create_graph=True
    )
    phi = change - rate * slope
    images, labels = batch
    patched = net.normalised(images) + change * pasted[:, None, None, None]
    outer = torch.nn.functional.cross_entropy(net.logits(params, patched), labels)
    outer_slope = gradients(torch, outer, change, retain_graph=True)
    v = torch.zeros_like(change)
    for _ in range(5):
        v = gradients(torch, phi, change, grad_outputs=v, retain_graph=True) + outer_slope
    implicit = gradients(torch, phi, params, grad_outputs=v, retain_graph=True)
    return outer, v, gradients(torch, outer, params), implicit


def attention(torch, features, p):
    """Return NAD's normalised attention maps [B, H, W] of features [B, c, H, W]."""
    maps = (features.abs() ** p).sum(1)
    return maps / (maps.flatten(1).norm(dim=1)[:, None, None] + 1e-6)


def nad_value(torch, student, teacher, stats, images, labels, betas, p):
    """Return NAD's loss with the weight of each layer's distance in `betas`."""
    net = Net(torch)
    inputs = net.normalised(images)
    logits, ours = net.features(student, inputs)
    with torch.no_grad():
        theirs = Net(torch, stats).features(teacher, inputs)[1]
    loss = torch.nn.functional.cross_entropy(logits, labels)
    for name, beta in betas.items():
        distance = (attention(torch, ours[name], p) - attention(torch, theirs[name], p)) ** 2
        loss = loss + beta * distance.mean()
    return loss


# --- comparison with d3jax


def data_of(batch, reference_params=None, **inputs):
    """Return the `TrainData` of a loss whose batch is given."""
    return TrainData(None, batch.poisoned, {}, reference_params, inputs)


def jax_value(loss, variables, batch, data, key=KEY):
    """Return the value of a loss of d3jax, its gradient by the parameters, and what it reports."""
    both = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, (_, reported)), slope = both(*variables, batch, key, data)
    return value, slope, reported


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2])
def test_ft_sam_steps_match_the_formula(steps):
    torch = pytest.importorskip("torch")
    variables, batch = draw_variables(1), draw_batch(2)
    config = OptimConfig(lr=0.01, weight_decay=5e-4, schedule="constant")
    tx = make_optimizer(config, steps=steps, steps_per_epoch=1)
    step = make_train_step(
        tx,
        loss=ft_sam_loss(MODEL, 0.1),
        batches=lambda key, step, data: data.batch,
        sam=SamConfig(rho=2.0),
    )
    state = init_state(variables, tx, KEY)
    for _ in range(steps):
        moved = apply(state.variables, batch.images, train=True).batch_stats
        state, _ = jax.jit(step)(state, data_of(batch)._replace(batch=batch))
    params, images, labels = tensors(torch, (variables.params, batch.images, batch.labels))
    expected, momentum = ft_sam_steps(torch, params, images, labels, steps)
    trace = optax.tree.get(state.opt_state, "trace")
    assert error_of(state.variables.params, expected) < 1e-5
    assert error_of(trace, momentum) < 1e-4
    # Running statistics move once in a step, at the parameters before it.
    assert error_of(state.variables.batch_stats, tensors(torch, moved)) < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "lambdas"), [(2, (1.0, 0.0, 1.0)), (2, (0.5, 0.7, 2.0)), (4, (1.0, 0.0, 1.0))]
)
def test_sau_loss_and_gradient_match_the_formula(seed, lambdas):
    torch = pytest.importorskip("torch")
    batch = draw_batch(2)
    backdoored = centred(draw_variables(seed), batch.images)
    variables = perturbed(backdoored, 0.4, 3)
    weights = dict(zip(("clean", "adversarial", "shared"), np.float32(lambdas), strict=True))
    data = data_of(batch, copy=backdoored, **weights)
    value, slope, reported = jax_value(sau_loss(MODEL, SAUConfig()), variables, batch, data)

    params = tensors(torch, variables.params, trained=True)
    copied, stats, images, labels = tensors(torch, (*backdoored, batch.images, batch.labels))
    net = Net(torch, stats)

    def model(images):
        return net.logits(params, net.normalised(images))

    def copy(images):
        return net.logits(copied, net.normalised(images))

    parts, k, before, changed = sau_parts(torch, model, copy, images, labels)
    expected = sum(a * b for a, b in zip(lambdas, parts, strict=True))
    selected = (k != labels) & (k != before)
    assert selected.sum() >= 2
    # Each rule alone leaves images out, and model and copy differ on a selected image.
    assert ((k != labels) & ~selected).any() and ((k != before) & ~selected).any()
    assert (selected & (model(changed).argmax(1) != k)).any()
    assert error_of(reported["shared_loss"], parts[2]) < 1e-5
    assert error_of(value, expected) < 1e-5
    assert error_of(slope, gradients(torch, expected, params)) < 1e-4


@pytest.mark.slow
def test_anp_loss_and_gradient_match_the_formula():
    torch = pytest.importorskip("torch")
    variables, batch, rng = draw_variables(1), draw_batch(2), np.random.default_rng(4)
    masks = {
        f"norm{i}": np.float32(rng.uniform(0.2, 1, width)) for i, width in enumerate(WIDTHS, 1)
    }
    data = data_of(batch, variables.params)
    loss = anp_loss(MODEL, 0.4, 0.2)
    given = Variables(masks, variables.batch_stats)
    value, slope, _ = jax_value(loss, given, batch, data)

    # d3jax draws the noise of all biases before that of the scales.
    names = ("norm1", "norm2")
    keys = iter(jax.random.split(stream(KEY, "noise"), 4))
    biases, scales = (
        {
            name: jax.random.uniform(next(keys), masks[name].shape, minval=-0.4, maxval=0.4)
            for name in names
        }
        for _ in range(2)
    )
    noise = tensors(torch, {name: (scales[name], biases[name]) for name in names}, trained=True)
    params, images, labels = tensors(torch, (variables.params, batch.images, batch.labels))
    trained = tensors(torch, masks, trained=True)
    expected = anp_value(torch, params, trained, noise, images, labels, 0.4, 0.2)
    assert error_of(value, expected) < 1e-5
    assert error_of(slope, gradients(torch, expected, trained)) < 1e-4


def ibau_case(torch):
    """Return variables, batch and δ of I-BAU, and the PyTorch network with these as tensors."""
    variables, batch = draw_variables(1), draw_batch(2)
    change = np.float32(np.random.default_rng(5).normal(0, 0.5, (1, 6, 6, 3)))
    net = Net(torch, tensors(torch, variables.batch_stats))
    params = tensors(torch, variables.params, trained=True)
    return variables, batch, change, net, params, tensors(torch, change, trained=True)


@pytest.mark.slow
def test_ibau_perturbation_gradient_matches_the_formula():
    torch = pytest.importorskip("torch")
    variables, batch, change, net, params, patch = ibau_case(torch)
    given = Variables({"change": change}, {})
    value, slope, _ = jax_value(
        perturb_loss(MODEL, 0.001, STD), given, batch, data_of(batch, variables=variables)
    )
    images = tensors(torch, batch.images)
    own = net.logits(params, net.normalised(images)).argmax(1)
    expected = ibau_inner(torch, net, params, patch, images, own)
    assert error_of(value, expected) < 1e-5
    assert error_of(slope["change"], gradients(torch, expected, patch)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(("rate", "share"), [(0.1, 0.25), (2.0, 0.75)])
def test_ibau_hypergradient_matches_the_formula(rate, share):
    torch = pytest.importorskip("torch")
    variables, batch, change, net, params, patch = ibau_case(torch)
    first = draw_batch(6)
    config = IBAUConfig(share=share, steps=5, map_rate=rate, decay=0.001)
    data = data_of(batch, change=change, first=first)
    _, slope, reported = jax_value(unlearn_loss(MODEL, config, STD), variables, batch, data)

    rows = jax.random.permutation(KEY, SIZE) < int(share * SIZE)
    pasted = torch.tensor(np.float64(rows))
    pairs = [tensors(torch, (one.images, one.labels)) for one in (first, batch)]
    outer, v, direct, implicit = ibau_hypergradient(torch, net, params, patch, *pairs, pasted, rate)
    assert error_of(slope, jax.tree.map(torch.add, direct, implicit)) < 1e-4
    # The implicit part is small beside the direct one, so it is also compared alone.
    rest = jax.tree.map(lambda a, b: np.float64(a) - b.numpy(), slope, direct)
    assert error_of(rest, implicit) < 1e-3
    assert error_of(reported["implicit"], v.norm()) < 1e-4
    assert error_of(reported["outer_loss"], outer) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("p", [2.0, 3.0])
def test_nad_loss_and_gradient_match_the_formula(p):
    torch = pytest.importorskip("torch")
    variables, batch = draw_variables(1), draw_batch(2)
    teacher = perturbed(variables, 0.5, 3)
    betas = {"block1": 500.0, "norm2": 1000.0}  # norm2 has negative features
    loss = nad_loss(MODEL, tuple(betas), tuple(betas.values()), p)
    value, slope, reported = jax_value(loss, variables, batch, data_of(batch, teacher=teacher))

    student = tensors(torch, variables.params, trained=True)
    taught, stats = tensors(torch, tuple(teacher))
    images, labels = tensors(torch, (batch.images, batch.labels))
    expected = nad_value(torch, student, taught, stats, images, labels, betas, p)
    assert reported["distillation"] > 0.1 * value
    assert error_of(value, expected) < 1e-5
    assert error_of(slope, gradients(torch, expected, student)) < 1e-4
