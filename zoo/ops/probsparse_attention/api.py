"""The public function: checks, defaults, choice of implementation."""

import jax.numpy as jnp

from zoo.ops.dispatch import select
from zoo.ops.probsparse_attention import reference, sparse
from zoo.ops.probsparse_attention.common import (
    CausalContext,
    Options,
    Sample,
    Selection,
    check_options,
    is_key,
    layout,
    zero_padding,
)
from zoo.typing import Array, Bool, Float, Int, PRNGKeyArray

_TABLE = {"xla": sparse.attend, "reference": reference.attend}


def probsparse_attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B S H K"],
    v: Float[Array, "B S H V"],
    *,
    key: PRNGKeyArray | None = None,
    sample_indices: Int[Array, "T U"] | Int[Array, " U"] | None = None,
    factor: int = 5,
    sample: Sample = "per_query",
    mask: Bool[Array, "B S"] | None = None,
    query_mask: Bool[Array, "B T"] | None = None,
    causal: bool = False,
    selection: Selection = "causal",
    causal_context: CausalContext = "mean",
    scale: float | None = None,
    implementation: str | None = None,
) -> Float[Array, "B T H V"]:
    """ProbSparse attention (Zhou et al. 2021, arXiv:2012.07436, section 3.1), O(T log T) in time and memory.

    Few queries attend to all keys; the others get the mean of the values. Which is found from samples of keys. With
    budget(n) = min(c ceil(ln n), n), n real tokens, and c the `factor`::

        M_i = max_j q_i·k_j - 1/n Σ_j q_i·k_j     j over the budget(n) keys that are drawn for query i, with replacement
        y_i = Σ_j softmax_j(scale q_i·k_j) v_j    for the budget(n) queries of the largest M
        y_i = 1/n Σ_j v_j                         for the others

    (The sum has budget(n) terms and is divided by n, as in the authors' code.) c >= n is softmax attention. The sample
    is the same for all examples and heads. The choice is made head by head; it has no gradient.

    The causal form is of this library. Of query i everything is a function of the tokens up to i: its sample is of the
    i + 1 keys up to its own, the mean is the running one, and it attends where fewer than c of the earlier queries have
    an M at least as large as its own, unless budget(i + 1) queries have attended already. If the order of the M is
    random, c (1 + ln(T / c)) queries are so chosen on average, about budget(T), which is also the most. The choice of
    the largest M of the whole sequence, which the authors make for their decoder, lets an output depend on later
    queries and keys; it is `selection="authors"`.

    Padding is never sampled, attended to or counted: n is the number of real tokens, so neither content nor amount of
    padding changes anything at real positions (save where two M are within rounding of each other). Sums, M and softmax
    are float32 (float64 for float64 inputs) whatever the dtype of the inputs.

    Args:
      q, k, v: queries, keys and values; only bidirectionally may T differ from S.
      key: for the sample; either this or `sample_indices` is needed.
      sample_indices: positions of the keys to sample, [T, U] with `sample="per_query"`, [U] with "shared". Padding
        among them does not count, nor do later keys where they may not be seen.
      factor: c.
      sample: "per_query" draws other keys for every query, as the authors do. "shared" takes the same for all, so that
        M is one matrix product instead of U gathers of keys, several times faster; causally of c keys from each of the
        stretches [e^m, e^(m + 1)).
      mask: True at real keys; None where all are.
      query_mask: True at real queries. None: `mask` where T == S (self-attention), else all are. Give it for
        cross-attention, where T may happen to equal S. Causally there is one mask for both.
      causal: position i sees positions <= i only.
      selection: causal only, "causal" as above, or "authors": sampled from all keys, chosen among all queries.
      causal_context: causal only, what queries get that do not attend: "mean", the running mean of the values, or
        "cumsum", their running sum, as in the authors' code.
      scale: factor of the scores that are attended with; None for K ** -0.5.
      implementation: "xla", "reference" (all pairs written out), or None to choose.

    Returns:
      The output [B, T, H, V] in the dtype of `v`; finite, without meaning, at padded queries.

    Raises:
      ValueError: shapes or options that do not fit each other; none or both of `key` and `sample_indices`.
      TypeError: a mask is not boolean, `key` is not a typed key or the indices are not integers.
    """
    check_options(factor, sample, selection, causal_context)
    _check_arrays(q, k, v, mask, query_mask, causal)
    drawn = _check_sample(key, sample_indices, sample, q.shape[1])
    attend = select(implementation, _TABLE, op="probsparse_attention", default="xla")
    length, sources = q.shape[1], k.shape[1]
    if query_mask is None and length == sources:
        query_mask = mask
    options = Options(
        factor,
        q.shape[-1] ** -0.5 if scale is None else scale,
        sample,
        causal,
        selection,
        causal_context,
    )
    where = layout(query_mask, mask, length, sources, options)
    q, k, v = (jnp.asarray(zero_padding(x, real)) for x, real in ((q, query_mask), (k, mask), (v, mask)))
    return attend(q, k, v, drawn, where, options).astype(v.dtype)


def _check_arrays(q: Array, k: Array, v: Array, mask: Array | None, query_mask: Array | None, causal: bool) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise ValueError(f"probsparse_attention takes {name} of four axes [B, T, H, K]; it has shape {x.shape}.")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"probsparse_attention takes floating point {name}; it has dtype {x.dtype}.")
        if x.shape[1] == 0:
            raise ValueError(f"probsparse_attention needs at least one token; axis 1 of {name} has shape {x.shape}.")
    if (q.shape[0], *q.shape[2:]) != (k.shape[0], *k.shape[2:]):
        raise ValueError(f"q {q.shape} and k {k.shape} must agree in axes 0 (B), 2 (H) and 3 (K).")
    if k.shape[:3] != v.shape[:3]:
        raise ValueError(f"k {k.shape} and v {v.shape} must agree in axes 0 (B), 1 (S) and 2 (H).")
    if causal and q.shape[1] != k.shape[1]:
        raise ValueError(f"causal probsparse_attention needs T == S; axis 1 of q has {q.shape[1]}, of k {k.shape[1]}.")
    if causal and query_mask is not None:
        raise ValueError("causal probsparse_attention has one mask for queries and keys; give `mask`.")
    for name, x, rows in (("mask", mask, k), ("query_mask", query_mask, q)):
        if x is not None and x.dtype != bool:
            raise TypeError(f"{name} must be boolean, True at real tokens; its dtype is {x.dtype}.")
        if x is not None and x.shape != rows.shape[:2]:
            raise ValueError(f"{name} must have shape {rows.shape[:2]}; it has {x.shape}.")


def _check_sample(
    key: PRNGKeyArray | None, sample_indices: Array | None, sample: Sample, length: int
) -> PRNGKeyArray | Array:
    """The one of `key` and `sample_indices` that is given."""
    if sample_indices is None:
        if key is None:
            raise ValueError("probsparse_attention samples keys: give `key=jax.random.key(seed)`, or `sample_indices`.")
        if not is_key(key):
            raise TypeError(f"key must be a typed key such as jax.random.key(0); it has dtype {key.dtype}.")
        return key
    if key is not None:
        raise ValueError("probsparse_attention takes either `key` or `sample_indices`, not both.")
    sample_indices = jnp.asarray(sample_indices)
    if not jnp.issubdtype(sample_indices.dtype, jnp.integer):
        raise TypeError(f"sample_indices must be integers; their dtype is {sample_indices.dtype}.")
    due = (length, "U") if sample == "per_query" else ("U",)
    shape = sample_indices.shape
    if len(shape) != len(due) or 0 in shape or (sample == "per_query" and shape[0] != length):
        takes = f"sample_indices of shape [{', '.join(map(str, due))}] with U > 0"
        raise ValueError(f"sample={sample!r} takes {takes}; they have {shape}.")
    return sample_indices
