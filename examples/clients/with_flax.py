"""Steps of distillation with Flax, nnx and linen, and a chain of optax."""

import functools

import jax
import optax
from flax import nnx

from kldiv import kl_div_with_logits

optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))


@functools.partial(nnx.jit, static_argnames="loss")
def nnx_step(student, state, inputs, teacher_logits, loss=kl_div_with_logits):
    """Change a module, and its `state = nnx.Optimizer(student, optimizer, wrt=nnx.Param)`."""
    value, gradients = nnx.value_and_grad(lambda student: loss(student(inputs), teacher_logits))(
        student
    )
    state.update(student, gradients)
    return value


@functools.partial(jax.jit, static_argnames=("student", "loss"))
def linen_step(student, params, state, inputs, teacher_logits, loss=kl_div_with_logits):
    """Return the parameters and `state = optimizer.init(params)` after a step, and the loss."""
    value, gradients = jax.value_and_grad(
        lambda params: loss(student.apply(params, inputs), teacher_logits)
    )(params)
    updates, state = optimizer.update(gradients, state, params)
    return optax.apply_updates(params, updates), state, value
