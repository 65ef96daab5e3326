"""`jax.lax.scan`, with what a step computes of its input alone computed beforehand, for all steps at once.

In a rollout that is everything random: the noise of the actions and the states in which episodes begin. On a CPU, JAX's
generator is a loop of small operations, which for all steps costs a fraction of what it does for one step after the
other; elsewhere it is a few kernels instead of a few per step (not measured there).
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
from jax.extend.core import ClosedJaxpr, Literal, Var

Carry = TypeVar("Carry")
Xs = TypeVar("Xs")
Ys = TypeVar("Ys")

# What a value depends on; the operation on several depends on the most of them.
_NOTHING, _INPUT, _CARRY = range(3)


class _Op(NamedTuple):
    """One primitive operation on numbered values; constants stand for themselves."""

    eqn: Any
    inputs: list["int | Literal"]
    outputs: list[int]


def scan_ahead(step: Callable[[Carry, Xs], tuple[Carry, Ys]], carry: Carry, xs: Xs) -> tuple[Carry, Ys]:
    """What `jax.lax.scan(step, carry, xs)` returns, to the bit with JAX's default generator.

    The price is memory: all that depends on the input alone and is read by the rest of the step is kept for every step.
    A step with side effects, such as `jax.debug.print`, is scanned as it is, in its order; so is any under
    `jax.debug_nans`, which then names the operation of the step's own that made a NaN. Profiles name this module as the
    place of what a step does.

    Args:
      step: (carry, x) -> (carry, y); the carry it returns has the types of the one it is given.
      carry: the first.
      xs: leaves [n, ...], of which a step gets one row.

    Returns:
      The last carry, and the ys with leaves [n, ...].
    """
    if jax.config.jax_debug_nans:  # type: ignore[attr-defined]
        return jax.lax.scan(step, carry, xs)
    x = jax.eval_shape(lambda xs: jax.tree.map(lambda leaf: leaf[0], xs), xs)
    closed, shape = jax.make_jaxpr(step, return_shape=True)(carry, x)
    if closed.effects:
        return jax.lax.scan(step, carry, xs)
    numbers = itertools.count()
    counts = len(closed.consts), len(jax.tree.leaves(carry)), len(jax.tree.leaves(x))
    consts, state, inputs = (_take(numbers, count) for count in counts)
    ops, outputs = _inline(closed.jaxpr, [*consts, *state, *inputs], numbers)

    depends = dict.fromkeys(consts, _NOTHING) | dict.fromkeys(inputs, _INPUT) | dict.fromkeys(state, _CARRY)
    for op in ops:
        most = max((depends[i] for i in op.inputs if isinstance(i, int)), default=_NOTHING)
        depends |= dict.fromkeys(op.outputs, most)
    beforehand = [op for op in ops if depends[op.outputs[0]] < _CARRY]
    within = [op for op in ops if depends[op.outputs[0]] != _INPUT]
    read = [*itertools.chain.from_iterable(op.inputs for op in within), *outputs]
    known = sorted({i for i in read if isinstance(i, int) and depends[i] == _INPUT})
    if not known:
        return jax.lax.scan(step, carry, xs)

    def ahead(x: Xs) -> list[jax.Array]:
        start = _named([*consts, *inputs], [*closed.consts, *jax.tree.leaves(x)])
        return _evaluate(beforehand, start, known)

    def rest(carry: Carry, values: list[jax.Array]) -> tuple[Carry, Ys]:
        start = _named([*consts, *state, *known], [*closed.consts, *jax.tree.leaves(carry), *values])
        return jax.tree.unflatten(jax.tree.structure(shape), _evaluate(within, start, outputs))

    return jax.lax.scan(rest, carry, jax.vmap(ahead)(xs))


def _named(names: list[Any], values: list[Any]) -> dict[Any, Any]:
    return dict(zip(names, values, strict=True))


def _take(numbers: Iterator[int], count: int) -> list[int]:
    return list(itertools.islice(numbers, count))


def _inline(jaxpr: Any, arguments: list["int | Literal"], numbers: Iterator[int]) -> tuple[list[_Op], list[Any]]:
    """The operations of a program, those of the jitted functions that it calls among them, and its results."""
    of: dict[Var, int | Literal] = _named([*jaxpr.constvars, *jaxpr.invars], arguments)

    def read(atom: Any) -> "int | Literal":
        return atom if isinstance(atom, Literal) else of[atom]

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
        of |= _named(eqn.outvars, outputs)
    return ops, [read(atom) for atom in jaxpr.outvars]


def _evaluate(ops: list[_Op], values: dict[int, jax.Array], wanted: list[Any]) -> list[jax.Array]:
    def read(i: "int | Literal") -> Any:
        return i.val if isinstance(i, Literal) else values[i]

    for op in ops:
        primitive = op.eqn.primitive
        with op.eqn.ctx.manager:
            result = primitive.bind(*map(read, op.inputs), **primitive.get_bind_params(op.eqn.params))
        values |= _named(op.outputs, result if primitive.multiple_results else [result])
    return [read(i) for i in wanted]
