"""Functions of arrays; they import JAX and never Flax."""
