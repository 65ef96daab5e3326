"""`jax.lax.scan` that hoists every operation not depending on the carry out of the loop and vmaps it over the steps.

In a rollout these are the random draws: the noise of the actions, and the states in which episodes begin. On a CPU,
JAX's generator is a loop of small operations, which costs a fraction for all steps at once of what it costs step by
step; on an accelerator it is a few kernels instead of a few per step (not measured there).

The step is traced to a jaxpr. Each of its operations depends on the step's input `x`, on the carry, or on neither. What
depends on the carry stays in the loop; what depends on `x` alone is evaluated under `vmap` before it.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
from jax.extend.core import ClosedJaxpr, Literal, Var

Carry = TypeVar("Carry")
Xs = TypeVar("Xs")
Ys = TypeVar("Ys")

# What a value depends on, in ascending order: the result of an operation has the highest level among its inputs.
_NOTHING, _INPUT, _CARRY = range(3)


class _Op(NamedTuple):
    """One primitive operation. Its values are identified by numbers, and literals stand for themselves."""

    eqn: Any
    inputs: list["int | Literal"]
    outputs: list[int]


def scan_ahead(step: Callable[[Carry, Xs], tuple[Carry, Ys]], carry: Carry, xs: Xs) -> tuple[Carry, Ys]:
    """Returns what `jax.lax.scan(step, carry, xs)` returns, bitwise identical with JAX's default generator.

    The price is memory: a hoisted value that the loop reads is stored for every step. Two cases are left to
    `jax.lax.scan`, unchanged: a step with side effects, such as `jax.debug.print`, so that they keep their order, and
    any step under `jax.debug_nans`, so that JAX names the operation that made a NaN. Profiles attribute the
    operations of a step to this module.

    Args:
      step: (carry, x) -> (carry, y); the returned carry has the types of the given one.
      carry: the initial carry.
      xs: leaves [n, ...]; each step gets one row.

    Returns:
      The last carry, and the ys with leaves [n, ...].
    """
    if jax.config.jax_debug_nans:  # type: ignore[attr-defined]
        return jax.lax.scan(step, carry, xs)
    x = jax.eval_shape(lambda xs: jax.tree.map(lambda leaf: leaf[0], xs), xs)
    closed, shape = jax.make_jaxpr(step, return_shape=True)(carry, x)
    if closed.effects:
        return jax.lax.scan(step, carry, xs)
    # The step as a flat list of primitive operations on numbered values, which begin with its arguments.
    numbers = itertools.count()
    counts = len(closed.consts), len(jax.tree.leaves(carry)), len(jax.tree.leaves(x))
    consts, state, inputs = (_take(numbers, count) for count in counts)
    ops, outputs = _inline(closed.jaxpr, [*consts, *state, *inputs], numbers)

    depends = dict.fromkeys(consts, _NOTHING) | dict.fromkeys(inputs, _INPUT) | dict.fromkeys(state, _CARRY)
    for op in ops:  # in the order of execution, so that the level of every input is known
        level = max((depends[i] for i in op.inputs if isinstance(i, int)), default=_NOTHING)
        depends |= dict.fromkeys(op.outputs, level)
    # Operations on constants alone are in both lists, so that their results need not be stored for every step.
    hoisted = [op for op in ops if depends[op.outputs[0]] < _CARRY]
    in_loop = [op for op in ops if depends[op.outputs[0]] != _INPUT]
    # The hoisted values that the loop, or the step's result, reads: these become the scan's input.
    read = [*itertools.chain.from_iterable(op.inputs for op in in_loop), *outputs]
    precomputed = sorted({i for i in read if isinstance(i, int) and depends[i] == _INPUT})
    if not precomputed:
        return jax.lax.scan(step, carry, xs)

    def hoisted_part(x: Xs) -> list[jax.Array]:
        start = _by_number([*consts, *inputs], [*closed.consts, *jax.tree.leaves(x)])
        return _evaluate(hoisted, start, precomputed)

    def loop_body(carry: Carry, values: list[jax.Array]) -> tuple[Carry, Ys]:
        start = _by_number([*consts, *state, *precomputed], [*closed.consts, *jax.tree.leaves(carry), *values])
        return jax.tree.unflatten(jax.tree.structure(shape), _evaluate(in_loop, start, outputs))

    return jax.lax.scan(loop_body, carry, jax.vmap(hoisted_part)(xs))


def _by_number(numbers: list[Any], values: list[Any]) -> dict[Any, Any]:
    return dict(zip(numbers, values, strict=True))


def _take(numbers: Iterator[int], count: int) -> list[int]:
    return list(itertools.islice(numbers, count))


def _inline(jaxpr: Any, arguments: list["int | Literal"], numbers: Iterator[int]) -> tuple[list[_Op], list[Any]]:
    """Returns the operations of a jaxpr, with calls of jitted functions inlined, and its results.

    A jitted function has to be opened up because parts of it may be hoisted; a loop or a branch is one operation.
    """
    value_of: dict[Var, int | Literal] = _by_number([*jaxpr.constvars, *jaxpr.invars], arguments)

    def read(atom: Any) -> "int | Literal":
        return atom if isinstance(atom, Literal) else value_of[atom]

    ops: list[_Op] = []
    for eqn in jaxpr.eqns:
        inputs = [read(atom) for atom in eqn.invars]
        called = eqn.params.get("jaxpr") if eqn.primitive.name in ("pjit", "jit") else None
        if isinstance(called, ClosedJaxpr) and not called.consts:
            inner, outputs = _inline(called.jaxpr, inputs, numbers)
            ops += inner
        else:
            outputs = _take(numbers, len(eqn.outvars))
            ops += [_Op(eqn, inputs, outputs)] if outputs else []
        value_of |= _by_number(eqn.outvars, outputs)
    return ops, [read(atom) for atom in jaxpr.outvars]


def _evaluate(ops: list[_Op], values: dict[int, jax.Array], wanted: list[Any]) -> list[jax.Array]:
    """Runs the operations on the given values, number -> array, and returns the wanted ones."""

    def read(i: "int | Literal") -> Any:
        return i.val if isinstance(i, Literal) else values[i]

    for op in ops:
        primitive = op.eqn.primitive
        with op.eqn.ctx.manager:  # the settings that were in force where the operation was traced
            result = primitive.bind(*map(read, op.inputs), **primitive.get_bind_params(op.eqn.params))
        values |= _by_number(op.outputs, result if primitive.multiple_results else [result])
    return [read(i) for i in wanted]
