"""The delta rule by flash-linear-attention's recurrence."""

import jax
import jax.numpy as jnp

from goldens import OP, Found, comparison
from zoo.ops.gated_delta_rule import gated_delta_rule

FORMS = ("reference", "xla_sequential", "xla_chunked", "xla")


@comparison("delta_rule_op", "`gated_delta_rule`", OP, FORMS)
@comparison("delta_rule_op_state", "`gated_delta_rule` with an initial state", OP, FORMS)
def delta_rule_op(arrays, implementation):
    """[B, H, T, ...], ours by chunks of 16; gradients of `sum(o * cotangent)`."""

    def turned(name, x):
        return x if "state" in name else x.swapaxes(1, 2)

    given = {name: turned(name, x) for name, x in arrays.under("in/").items()}
    cotangent = given.pop("cotangent")

    @jax.jit
    def run(given, cotangent):
        def forward(given):
            return gated_delta_rule(**given, return_state=True, implementation=implementation, chunk_size=16)

        (y, state), pull = jax.vjp(forward, given)
        return y, state, pull((cotangent, jnp.zeros_like(state)))[0]

    y, state, gradients = run(given, cotangent)
    yield Found("out/o", y.swapaxes(1, 2))
    yield Found("out/final_state", state)
    for name in arrays.under("grad/"):
        yield Found(f"grad/{name}", turned(name, gradients[name]))
