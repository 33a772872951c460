"""What benchmarks count and how their processes talk; the measurements themselves are `slow`."""

import argparse
import json
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from d3jax.base import DataInfo
from d3jax.models import PreActResNet18Config, preact_resnet18

FOLDER = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.parametrize("width", [4, 64])
def test_multiplications_are_those_of_the_traced_network(width):
    import train_step

    model = preact_resnet18(PreActResNet18Config(width), DataInfo("x", (32, 32, 3), tuple("0123456789"), (0.5,) * 3, (0.5,) * 3))
    variables = jax.eval_shape(model.init, jax.random.key(0))
    traced = jax.make_jaxpr(lambda v, x: model.apply(v, x, train=False).logits)(variables, jnp.zeros((1, 32, 32, 3)))
    assert count(traced.jaxpr) == train_step.macs(width)


def count(jaxpr) -> int:
    """Multiplications of the convolutions and matrix products in a jaxpr."""
    total = 0
    for equation in jaxpr.eqns:
        out = equation.outvars[0].aval
        if equation.primitive.name == "conv_general_dilated":
            total += math.prod(out.shape) * math.prod(equation.invars[1].aval.shape[:3])
        elif equation.primitive.name == "dot_general":
            total += math.prod(out.shape) * equation.invars[0].aval.shape[-1]
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            total += count(inner) if hasattr(inner, "eqns") else 0
    return total


def test_ratios_are_taken_within_a_round():
    import train_step

    found = train_step.summary({"ours/float32": [1.0, 2.0, 4.0], "torch/eager": [2.0, 2.0, 2.0]}, batch=8)
    assert found["ratios"] == {"ours/float32 over torch/eager": {"min": 0.5, "median": 1.0, "max": 2.0}}
    assert found["images_a_second"]["torch/eager"]["median"] == 4.0


def test_a_worker_answers_and_says_what_fails(tmp_path):
    import worker

    (tmp_path / "side.py").write_text(
        "from worker import serve\n"
        "def prepare(settings):\n"
        "    print('noise')\n"
        "    if settings['name'] == 'bad': raise ValueError('no such thing')\n"
        "    return (lambda: 0.5), {'steps': settings['steps']}\n"
        "serve(prepare)\n"
    )
    side = worker.Worker([sys.executable, str(tmp_path / "side.py")], {"PYTHONPATH": str(FOLDER)})
    assert side.ask({"prepare": {"name": "good", "steps": 3}}) == {"ready": {"steps": 3}}
    assert side.ask({"prepare": {"name": "bad"}}) == {"error": "ValueError: no such thing"}
    assert side.ask({"run": "good"}) == {"seconds": 0.5}
    side.close()


@pytest.mark.slow
def test_the_parts_run_on_this_machine_at_toy_size(tmp_path):
    """All but the comparison with PyTorch, which needs it, and the tables, which need an hour."""
    import gpu

    options = argparse.Namespace(out=tmp_path, work=tmp_path / "work", size=64, width=1, steps=1)
    for name in ("ceilings", "members", "streaming", "profile", "inversion", "lineages"):
        assert gpu.run_part(name, options) == 0
        assert json.loads((tmp_path / f"{name}_cpu.json").read_text())["part"] == name
    assert gpu.run_part("ceilings", options) == 0


def test_the_queue_names_every_part():
    import gpu

    queue = (FOLDER / "gpu_queue.md").read_text()
    for name in gpu.PARTS:
        assert name in queue or f"`-{name.partition('-')[2]}`" in queue, name
