"""Count the operations and the least bytes of a traced program, pass by pass.

A pass is what one kernel could do: a convolution or another heavy operation, or a chain of
elementwise operations with the sums at its end. It reads every operand from memory once and writes
every result once. A value inside a chain is not written. Where several passes need it, each
computes it again, unless writing it moves fewer bytes. Sums of equal operands share a pass.

This is what a compiler without a cache could do at best. It could save more only by a pass that
does a convolution and the elementwise work beside it.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterable
from typing import Any

from jax.extend import core

INLINED = ("jit", "pjit", "closed_call", "custom_jvp_call", "custom_vjp_call", "remat")
VIEWS = ("reshape", "squeeze", "transpose", "rev", "expand_dims", "copy", "stop_gradient")
"""Operations that a reader of their result can do while it reads."""
SUMS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_and", "reduce_or", "argmax")
HEAVY = (
    "conv_general_dilated", "dot_general", "gather", "scatter", "scatter-add", "dynamic_slice",
    "sort", "scan", "while", "random_bits", "cumsum",
)  # fmt: skip


@dataclasses.dataclass(eq=False)
class Value:
    """An array of a traced program; `source` is the operation that makes it (None: an input)."""

    shape: tuple[int, ...]
    itemsize: int
    source: Operation | None = None

    @property
    def bytes(self) -> int:
        """Return the number of bytes of the array."""
        return math.prod(self.shape) * self.itemsize

    @property
    def base(self) -> Value:
        """Return the array in memory of which this one is a view."""
        source = self.source
        return source.inputs[0].base if source and source.name in VIEWS else self


@dataclasses.dataclass(eq=False)
class Operation:
    """An operation of a traced program; `scope` names the layers and transformations it is in."""

    name: str
    scope: str
    inputs: list[Value]
    outputs: list[Value]
    parameters: dict[str, Any]

    @property
    def macs(self) -> int:
        """Return the multiplications of a convolution or matrix product, padding included."""
        if self.name == "conv_general_dilated":
            numbers, kernel = self.parameters["dimension_numbers"], self.inputs[1].shape
            # Zeros that dilation puts into the images are no work.
            taps = math.prod(kernel) // kernel[numbers.rhs_spec[0]]
            dilation = math.prod(self.parameters["lhs_dilation"])
            return math.prod(self.outputs[0].shape) * taps // dilation
        if self.name == "dot_general":
            ((summed, _), _) = self.parameters["dimension_numbers"]
            inside = math.prod(self.inputs[0].shape[axis] for axis in summed)
            return math.prod(self.outputs[0].shape) * inside
        return 0


@dataclasses.dataclass
class Pass:
    """A pass: the operations whose results it writes, its multiplications, and its least bytes."""

    roots: list[Operation]
    macs: int
    reads: frozenset[Value]
    bytes: int = 0

    @property
    def results(self) -> set[Value]:
        """Return the results of the pass's operations."""
        return {value for root in self.roots for value in root.outputs}


@dataclasses.dataclass
class Program:
    """A traced program without dead code: operations in order, inputs and results."""

    operations: list[Operation]
    inputs: list[Value]
    outputs: list[Value]


def program_of(closed: core.ClosedJaxpr) -> Program:
    """Return the operations of a traced program, with calls put in place and dead code left out.

    Where code depends on the platform, it is that of a GPU.
    """
    operations: list[Operation] = []
    inputs = [_value(variable.aval) for variable in closed.jaxpr.invars]
    outputs = _flatten(closed.jaxpr, closed.consts, inputs, "", operations)
    wanted, live = set(outputs), []
    for operation in reversed(operations):
        if wanted & set(operation.outputs):
            wanted |= set(operation.inputs)
            live.append(operation)
    return Program(live[::-1], inputs, outputs)


def _value(aval: Any, source: Operation | None = None) -> Value:
    # Random keys are two numbers of 4 bytes.
    return Value(tuple(aval.shape), getattr(aval.dtype, "itemsize", 8), source)


def _flatten(jaxpr, consts, inputs, scope, operations) -> list[Value]:
    known = dict(zip(jaxpr.invars, inputs, strict=True))
    known |= {variable: _value(variable.aval) for variable in jaxpr.constvars}

    def look(atom):
        # A literal is a number in the code, which no pass reads.
        return Value((0,), 0) if isinstance(atom, core.Literal) else known[atom]

    for equation in jaxpr.eqns:
        here = f"{scope}/{equation.source_info.name_stack}"
        given = [look(atom) for atom in equation.invars]
        inner = _body(equation)
        if inner is None:
            operation = Operation(equation.primitive.name, here, given, [], dict(equation.params))
            operation.outputs = [_value(one.aval, operation) for one in equation.outvars]
            operations.append(operation)
            found = operation.outputs
        else:
            given = given[1:] if equation.primitive.name == "cond" else given
            found = _flatten(inner.jaxpr, inner.consts, given, here, operations)
        known |= dict(zip(equation.outvars, found, strict=True))
    return [look(atom) for atom in jaxpr.outvars]


def _body(equation) -> core.ClosedJaxpr | None:
    """Return the program that an equation calls, or None for an operation."""
    name, given = equation.primitive.name, equation.params
    if name == "cond" and "branches_platforms" in given:
        chosen = next(i for i, one in enumerate(given["branches_platforms"]) if one is None)
        return given["branches"][chosen]
    if name in INLINED:
        return next(given[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in given)
    return None


def passes(program: Program) -> list[Pass]:
    """Return the passes of a program that move the fewest bytes, in order of their first result."""
    written = _must_be_written(program)
    best = _passes(program, written)
    for value in _shared(program, written):
        tried = _passes(program, written | {value})
        if sum(one.bytes for one in tried) < sum(one.bytes for one in best):
            written, best = written | {value}, tried
    return best


def _must_be_written(program: Program) -> set[Value]:
    """Return the results of heavy operations and sums, what heavy ones read, and the outputs."""
    written = {value.base for value in program.outputs}
    for operation in program.operations:
        if operation.name in HEAVY + SUMS:
            written |= set(operation.outputs)
        if operation.name in HEAVY:
            written |= {value.base for value in operation.inputs}
    return written


def _shared(program: Program, written: set[Value]) -> list[Value]:
    """Return the values of several operands that several operations need."""
    users = collections.Counter(
        value for operation in program.operations for value in set(operation.inputs)
    )
    reads = _reads(program, written)
    made = [value for operation in program.operations for value in operation.outputs]
    return [
        value
        for value in made
        if value not in written and users[value] > 1 and len(reads[value]) > 1
    ]


def _reads(program: Program, written: set[Value]) -> dict[Value, frozenset[Value]]:
    """Return for every value the values in memory from which a pass computes it."""
    reads: dict[Value, frozenset[Value]] = {}
    for operation in program.operations:
        operands: frozenset[Value] = frozenset()
        for value in operation.inputs:
            known = value in written or value.source is None
            operands |= ({value} if value.bytes else set()) if known else reads[value]
        reads |= {value: operands for value in operation.outputs}
    return reads


def _passes(program: Program, written: set[Value]) -> list[Pass]:
    reads, level = _reads(program, written), _levels(program)
    made = [
        operation
        for operation in program.operations
        if operation.name not in VIEWS and written & set(operation.outputs)
    ]
    found: list[Pass] = []
    beside: dict[int, list[Pass]] = collections.defaultdict(list)
    # Those with most operands come first, so that the others find a pass to share.
    for operation in sorted(made, key=lambda one: -_weight(reads[one.outputs[0]])):
        own = Pass([operation], operation.macs, reads[operation.outputs[0]])
        others = [] if operation.name in HEAVY else beside[level[operation]]
        shared = next((one for one in others if _share(one, own)), None)
        if shared:
            shared.roots.append(operation)
            shared.reads |= own.reads - shared.results
        else:
            found.append(own)
            others.append(own)
    for one in found:
        one.bytes = _moved(one, written)
    place = {operation: i for i, operation in enumerate(made)}
    return sorted(found, key=lambda one: min(place[root] for root in one.roots))


def _weight(reads: Iterable[Value]) -> int:
    return sum(value.bytes for value in reads)


def _share(some: Pass, other: Pass) -> bool:
    """Return whether two passes can be one: one has all large operands of the other.

    Elementwise operations can also go on with the other's results. A sum of them reads them again.
    """
    largest = max((value.bytes for value in some.reads | other.reads), default=0)
    one, two = ({value for value in a.reads if value.bytes == largest} for a in (some, other))
    if some.results & other.reads and other.roots[0].name not in SUMS:
        return two <= one | some.results
    return bool(one & two) and (one <= two or two <= one)


def _levels(program: Program) -> dict[Operation, int]:
    """Return for every operation how many sums and heavy operations its operands had in a row.

    Operations of one level need no sum of each other, and can share a pass.
    """
    levels: dict[Operation, int] = {}
    depth: dict[Value, int] = {}
    for operation in program.operations:
        own = max((depth.get(value, 0) for value in operation.inputs), default=0)
        levels[operation] = own
        done = operation.name in HEAVY + SUMS
        depth |= {value: own + done for value in operation.outputs}
    return levels


def _moved(one: Pass, written: set[Value]) -> int:
    """Return the least bytes that a pass reads and writes."""
    moved = sum(value.bytes for value in one.results & written)
    reads, first = set(one.reads), one.roots[0]
    if first.name in ("gather", "dynamic_slice"):  # only what is taken of the first operand
        moved += math.prod(first.outputs[0].shape) * first.inputs[0].itemsize
        reads.discard(first.inputs[0])
    return moved + sum(value.bytes for value in {value.base for value in reads})


def depends_on(program: Program, values: Iterable[Value]) -> set[Value]:
    """Return the values of a program that depend on some of its values, these included."""
    found = set(values)
    for operation in program.operations:
        if found & set(operation.inputs):
            found |= set(operation.outputs)
    return found
