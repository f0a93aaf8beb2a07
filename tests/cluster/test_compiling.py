"""Compilations are told to whoever shows progress, and made before the program is called."""

from contextlib import contextmanager

import jax
import jax.numpy as jnp

from mdlm.cluster import compiling


def test_a_compilation_is_announced_and_made_once():
    traced, told = [], []

    @jax.jit
    def program(x):
        traced.append(x.shape)
        return 2 * x

    @contextmanager
    def by(what):
        told.append(f"{what} begins")
        yield
        told.append(f"{what} ends, traced {len(traced)} time")

    with compiling.watched(by):
        compiling.compile_together(program, jnp.ones(3), what="the step")
    assert told == ["the step begins", "the step ends, traced 1 time"]
    program(jnp.ones(3))
    compiling.compile_together(program, jnp.ones(3), what="again")  # nobody watches any more
    assert len(traced) == 1 and len(told) == 2
