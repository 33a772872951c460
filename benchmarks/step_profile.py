"""Profile one training step of d3jax and of PyTorch on CPU, by kind of operation.

It prints milliseconds a step for each kind, side by side. d3jax's come from XLA's trace, in which
a fusion counts as the operation that it ends in. PyTorch's come from its profiler, which gives both
gradients of a convolution as one. Operations that run at the same time count in full, so that a sum
may exceed the step.

Command:
    python benchmarks/step_profile.py --width 16 [--net wide_resnet] [--precision bfloat16]
        [--torch PYTHON_WITH_TORCH] [--steps 5]
"""

from __future__ import annotations

import argparse
import collections
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from train_step import NETS

HERE = Path(__file__).parent
FORWARD, INPUT, WEIGHT, GRADIENTS = (
    "convolution, forward",
    "convolution, input gradient",
    "convolution, weight gradient",
    "convolution, both gradients",
)
NORM, NORM_BACK = "BatchNorm and ReLU, forward", "BatchNorm and ReLU, backward"
OPTIMISER, BATCH, REST = "optimiser", "drawing and augmenting the batch", "the rest"
KINDS = (FORWARD, INPUT, WEIGHT, GRADIENTS, NORM, NORM_BACK, OPTIMISER, BATCH, REST)
THEIRS = {
    "aten::mkldnn_convolution": FORWARD,
    "aten::convolution_backward": GRADIENTS,
    "aten::native_batch_norm": NORM,
    "aten::clamp_min": NORM,
    "aten::native_batch_norm_backward": NORM_BACK,
    "aten::threshold_backward": NORM_BACK,
    "Optimizer.step#SGD.step": OPTIMISER,
    "aten::index": BATCH,
}


def main() -> None:
    """Profile both sides and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--net", choices=NETS, default=NETS[0])
    parser.add_argument("--width", type=int, default=16, help="of preact_resnet18")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--torch", default="", help="Python interpreter that has torch")
    parser.add_argument("--side", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        profile = ours if options.side == "ours" else theirs
        print(json.dumps(profile(vars(options) | {"name": options.precision})))
        return
    sides = {"ours": sys.executable} | ({"theirs": options.torch} if options.torch else {})
    found = {side: _run(python, side) for side, python in sides.items()}
    net = f"width {options.width}" if options.net == NETS[0] else "WRN-16-1"
    print(f"{net}, {options.precision}, batch {options.batch}: milliseconds a step")
    for kind in (*KINDS, "sum", "step without the profiler"):
        row = "".join(f"{found[side].get(kind, 0):10.1f}" for side in sides)
        print(f"{kind:34}{row}")
    print(f"{'':34}" + "".join(f"{side:>10}" for side in sides))


def _run(python: str, side: str) -> dict[str, float]:
    command = [python, __file__, *sys.argv[1:], "--side", side]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def ours(settings: dict[str, Any]) -> dict[str, float]:
    """Return milliseconds a step of d3jax's training by kind."""
    sys.path.insert(0, str(HERE.parent))
    import jax
    from ours import training

    from d3jax.training.scan import ScannedStep

    loop, steps = training(settings), settings["steps"]
    repeat = ScannedStep(loop.step)
    kinds = kinds_of(repeat.program(loop.state, loop.data, 1).as_text())
    state = jax.tree.map(jax.numpy.copy, loop.state)

    def run(state):
        for _ in range(steps):
            state, _ = repeat(state, loop.data, 1)
        return jax.block_until_ready(state)

    state = run(state)
    began = time.perf_counter()
    state = run(state)
    seconds = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run(state)
        (path,) = Path(folder).rglob("*.xplane.pb")
        spent = exclusive(jax.profiler.ProfileData.from_file(str(path)))
    found: collections.Counter[str] = collections.Counter()
    for name, nanoseconds in spent.items():
        if kind := kinds.get(name.split("__onednn")[0]):
            found[kind] += nanoseconds / 1e6 / steps
    return _summed(found, seconds / steps)


def _summed(found: collections.Counter[str], seconds: float) -> dict[str, float]:
    return {**found, "sum": sum(found.values()), "step without the profiler": 1e3 * seconds}


def kinds_of(text: str) -> dict[str, str]:
    """Return the kind of every instruction of a compiled program's text, by its name.

    A convolution that is fused with its neighbours is named by them, so its computation is read
    too.
    """
    bodies = {
        match[1]: match[2]
        for match in re.finditer(r"^%([\w.\-]+) \(.*?\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    }
    found = {}
    for match in re.finditer(r"^ +(?:ROOT )?%([\w.\-]+) = (.*)$", text, re.MULTILINE):
        name, rest = match[1], match[2]
        path = re.search(r'op_name="([^"]*)"', rest)
        called = re.search(r"calls=%([\w.\-]+)", rest)
        inside = bodies.get(called[1], "") if called else ""
        found[name] = kind_of(
            path[1] if path else "", "__onednn" in rest or "convolution(" in inside
        )
    return found


def kind_of(path: str, heavy: bool) -> str:
    """Return the kind of an instruction, from its path in the traced program.

    `heavy` says that it is a convolution or a matrix product.
    """
    backward = "transpose(" in path
    if re.search(r"/(Conv_\d|stem|shortcut)/|conv_general_dilated", path) or heavy:
        if not backward:
            return FORWARD
        return WEIGHT if "/cond/" in path or "/while" in path else INPUT
    if "BatchNorm" in path or "relu" in path or "/norm/" in path or "select_n" in path and backward:
        return NORM_BACK if backward else NORM
    if "jvp(_" in path:
        return REST
    return BATCH if "jvp(" in path else OPTIMISER if path else REST


def exclusive(profile: Any) -> collections.Counter[str]:
    """Return the nanoseconds of every event of a trace, without those of the events inside it."""
    spent: collections.Counter[str] = collections.Counter()
    for line in (line for plane in profile.planes for line in plane.lines if line.name != "python"):
        around: list[tuple[float, str]] = []
        for start, length, name in sorted(
            (event.start_ns, -event.duration_ns, event.name) for event in line.events
        ):
            while around and around[-1][0] <= start:
                around.pop()
            if around:
                spent[around[-1][1]] += length
            spent[name] -= length
            around.append((start - length, name))
    return spent


def theirs(settings: dict[str, Any]) -> dict[str, float]:
    """Return milliseconds a step of PyTorch's eager training by kind."""
    import theirs as side

    return side.profile(settings, THEIRS, REST)


if __name__ == "__main__":
    main()
