"""Nyström attention: softmax attention through a few landmarks, in time and memory linear in the length.

Xiong et al., "Nyströmformer: A Nyström-Based Algorithm for Approximating Self-Attention" (arXiv:2102.03902). With m
landmarks q̃, k̃ (means of the queries and keys over m segments of the sequence)::

    softmax(q kᵀ) v  ~  softmax(q k̃ᵀ) · pinv(softmax(q̃ k̃ᵀ)) · (softmax(q̃ kᵀ) v)

and pinv is six steps of an iteration that needs matrix products only. Everything is computed in float32 (float64 for
float64 inputs) whatever the dtype of the inputs: the pseudo-inverse amplifies rounding.
"""

import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from zoo.ops.dispatch import select
from zoo.typing import Array, Bool, Float

PinvInit = Literal["per_matrix", "global", "global_product"]
Landmarks = Literal["valid", "padded"]

_MASKED = -1e30  # a logit that softmax turns into an exact zero, and stays finite where a whole row is masked
_CONV_BLOCK = 64

# TF32 and bfloat16 passes lose what float32 is asked for here; the products over T are bound by memory anyway.
_einsum = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)


def nystrom_attention(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    *,
    num_landmarks: int = 64,
    mask: Bool[Array, "B T"] | None = None,
    scale: float | None = None,
    pinv_iterations: int = 6,
    pinv_init: PinvInit = "per_matrix",
    landmarks: Landmarks = "valid",
    conv_kernel: Float[Array, "W H"] | None = None,
    causal: bool = False,
    implementation: str | None = None,
) -> Float[Array, "B T H V"]:
    """Self-attention by the Nyström method, optionally plus a depth-wise convolution of the values.

    Landmarks. `landmarks="valid"` lays the m segments over the real tokens of each example, wherever they are: of n
    real tokens the first m - n % m segments get n // m each, the others one more (the authors' rule for lengths that
    m does not divide, from their T2T-ViT code). An example with n <= m has every token as its own landmark and gets
    exact softmax attention. So neither the content nor the amount of padding matters, nor the rest of the batch.
    `landmarks="padded"` is the authors' LRA form: equal segments over the padded length T, masked queries and keys
    zeroed, means divided by the whole segment length; m must divide T. In both forms m >= T is exact softmax attention.

    Args:
      q, k, v: queries, keys and values; any floating dtype.
      num_landmarks: m.
      mask: True at real tokens; None where all are. The output at masked positions is finite and means nothing.
      scale: factor of the logits; None for K ** -0.5.
      pinv_iterations: steps of `iterative_pinv`. Six is the authors' number. Sharp logits diverge in float32 beyond
        about twenty.
      pinv_init: starting point of `iterative_pinv`. "global" is the authors' default and lets an example's output
        depend on its batch mates.
      landmarks: "valid" or "padded", see above.
      conv_kernel: one filter of odd width per head for `value_convolution`, whose result is added; None for none.
      causal: must be False.
      implementation: "xla", "reference" (dense [T, T] matrices) or None for the best.

    Returns:
      The attended values, in the dtype of `v`.

    Raises:
      ValueError: `causal=True`, shapes that do not belong together, an unknown option, a size that is not positive, or
        `landmarks="padded"` with a T that is neither divisible by m nor at most m.
      TypeError: `mask` is not boolean.
    """
    attend = select(implementation, _IMPLEMENTATIONS, op="nystrom_attention", default="xla")
    check_options(num_landmarks, pinv_iterations, pinv_init, landmarks, causal)
    _check_arrays(q, k, v, mask, conv_kernel)
    if landmarks == "padded" and q.shape[1] > num_landmarks and q.shape[1] % num_landmarks:
        raise ValueError(
            f'landmarks="padded" needs a length T that num_landmarks={num_landmarks} divides; T is {q.shape[1]}. '
            'Pad T to a multiple, or use landmarks="valid".'
        )
    dtype = jnp.promote_types(jnp.result_type(q, k, v), jnp.float32)
    if mask is None:
        q_, k_, v_ = (x.astype(dtype) for x in (q, k, v))
    else:
        q_, k_, v_ = (jnp.where(mask[..., None, None], x, 0).astype(dtype) for x in (q, k, v))
    y = attend(
        q_ * (q.shape[-1] ** -0.5 if scale is None else scale),
        k_,
        v_,
        None if conv_kernel is None else conv_kernel.astype(dtype),
        mask=mask,
        num_landmarks=num_landmarks,
        pinv_iterations=pinv_iterations,
        pinv_init=pinv_init,
        landmarks=landmarks,
    )
    return y.astype(v.dtype)


def check_options(
    num_landmarks: int, pinv_iterations: int, pinv_init: str, landmarks: str, causal: bool = False
) -> None:
    """Raises ValueError where `nystrom_attention` does not take these options, whatever its arrays are."""
    if causal:
        raise ValueError(
            "Nyström attention cannot be causal: each landmark averages over positions of the future, so that the "
            "output at a position would depend on later ones. Use causal=False or another mixer."
        )
    if num_landmarks < 1 or pinv_iterations < 1:
        raise ValueError(f"num_landmarks={num_landmarks} and pinv_iterations={pinv_iterations} must be positive.")
    if pinv_init not in get_args(PinvInit):
        raise ValueError(f"pinv_init must be one of {get_args(PinvInit)}; got {pinv_init!r}.")
    if landmarks not in get_args(Landmarks):
        raise ValueError(f"landmarks must be one of {get_args(Landmarks)}; got {landmarks!r}.")


def iterative_pinv(
    a: Float[Array, "B H M M"], *, iterations: int = 6, init: PinvInit = "per_matrix"
) -> Float[Array, "B H M M"]:
    """Pseudo-inverse of row-stochastic matrices by the iteration of the paper (equation 11).

    Z <- Z/4 (13 I - A Z (15 I - A Z (7 I - A Z))), from Z = Aᵀ / c, which converges where c is at least the product of
    the largest absolute row and column sums. The gradient flows through the iterations and through c.

    Args:
      a: nonnegative matrices whose rows sum to one.
      iterations: number of steps.
      init: c is the largest column sum of each matrix ("per_matrix"), of all matrices of the batch ("global", the
        authors' default), or the latter times the largest row sum ("global_product", their later code).
    """
    columns, rows = a.sum(-2), a.sum(-1)
    if init == "per_matrix":
        c = columns.max(-1)[..., None, None]
    else:
        c = columns.max() * (rows.max() if init == "global_product" else 1)
    eye = jnp.eye(a.shape[-1], dtype=a.dtype)

    # Backward recomputes the inside of a step: m³ is cheap, and the saved [m, m] matrices would rival those of [T, m].
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(z, _):
        az = _einsum("bhij,bhjk->bhik", a, z)
        inner = 15 * eye - _einsum("bhij,bhjk->bhik", az, 7 * eye - az)
        return 0.25 * _einsum("bhij,bhjk->bhik", z, 13 * eye - _einsum("bhij,bhjk->bhik", az, inner)), None

    return jax.lax.scan(step, jnp.swapaxes(a, -1, -2) / c, None, length=iterations)[0]


def value_convolution(v: Float[Array, "B T H V"], kernel: Float[Array, "W H"]) -> Float[Array, "B T H V"]:
    """Convolves along T with one filter per head, shared by its channels, zero padded by W // 2 on both sides.

    y[t] = sum_w kernel[w] v[t + w - W // 2], the authors' Conv2d with kernel (W, 1) and one group per head (their
    weight [H, 1, W, 1] is `kernel` transposed). Computed as products with a banded matrix, block by block of T: on CPU
    ten times faster than a grouped convolution and its gradient. Masked values must be zero on entry.
    """
    (B, T, H, V), W = v.shape, kernel.shape[0]
    block = max(_CONV_BLOCK, W - 1)
    blocks = -(-T // block)
    padded = jnp.pad(v, ((0, 0), (W // 2, (blocks + 1) * block - W // 2 - T), (0, 0), (0, 0)))
    padded = padded.reshape(B, blocks + 1, block, H, V)
    offset = jnp.arange(block + W - 1) - jnp.arange(block)[:, None]
    band = jnp.where(((offset >= 0) & (offset < W))[..., None], kernel[jnp.clip(offset, 0, W - 1)], 0)
    windows = jnp.concatenate([padded[:, :-1], padded[:, 1:, : W - 1]], axis=2)
    return _einsum("ijh,bnjhv->bnihv", band, windows).reshape(B, blocks * block, H, V)[:, :T]


def _xla(q, k, v, kernel, *, mask, num_landmarks, pinv_iterations, pinv_init, landmarks):
    """The linear form. `q` comes scaled; `q`, `k`, `v` are zero at masked positions and of the computing dtype."""
    m, T = num_landmarks, q.shape[1]
    keys = None if mask is None else mask[:, None, None, :]
    if m >= T:
        scores = _softmax(_einsum("bthk,bshk->bhts", q, k), keys)
        y = _einsum("bhts,bshv->bthv", scores, v)
    else:
        if mask is None or landmarks == "padded":
            (q_mean, k_mean), used, short = (_segment_means(x, m) for x in (q, k)), None, None
        else:
            member, short = _segments(mask, m)
            used = member.any(-1)[:, None, None, :]
            q_mean, k_mean = (_masked_means(x, member) for x in (q, k))
        k1 = _softmax(_einsum("bthk,bmhk->bhtm", q, k_mean), used)
        k2 = _softmax(_einsum("bmhk,bnhk->bhmn", q_mean, k_mean))
        k3 = _softmax(_einsum("bmhk,bthk->bhmt", q_mean, k), keys)
        context = _einsum("bhmt,bthv->bhmv", k3, v)
        if short is not None:  # k2 of these is not used; the identity keeps the iteration and its gradient regular
            k2 = jnp.where(short, jnp.eye(m, dtype=k2.dtype), k2)
        weights = _einsum("bhmn,bhnv->bhmv", iterative_pinv(k2, iterations=pinv_iterations, init=pinv_init), context)
        if short is not None:  # every token is a landmark: k1 is all of the attention and needs their own values
            tokens = jnp.max(jnp.where(member, jnp.arange(T), 0), axis=-1)
            own = jnp.take_along_axis(v, tokens[:, :, None, None], axis=1).swapaxes(1, 2)
            weights = jnp.where(short, own, weights)
        y = _einsum("bhtm,bhmv->bthv", k1, weights)
    return y if kernel is None else y + value_convolution(v, kernel)


def _softmax(logits, keep=None):
    return jax.nn.softmax(logits if keep is None else jnp.where(keep, logits, _MASKED), axis=-1)


def _segment_means(x, m):
    """Means [B, m, H, K] over m segments of all T tokens: T // m each, the last T % m one token more."""
    B, T, H, K = x.shape
    size, more = divmod(T, m)
    cut = (m - more) * size
    first = x[:, :cut].reshape(B, m - more, size, H, K).mean(2)
    return jnp.concatenate([first, x[:, cut:].reshape(B, more, size + 1, H, K).mean(2)], 1) if more else first


def _segments(mask, m):
    """Which real token belongs to which segment [B, m, T], and which examples have at most m tokens [B, 1, 1, 1]."""
    n = mask.sum(-1, keepdims=True)
    rank = jnp.cumsum(mask, axis=-1) - 1
    size, more = n // m, n % m
    cut = (m - more) * size
    segment = jnp.where(rank < cut, rank // jnp.maximum(size, 1), m - more + (rank - cut) // (size + 1))
    member = (segment[:, None, :] == jnp.arange(m)[:, None]) & mask[:, None, :]
    return member, (n <= m)[..., None, None]


def _masked_means(x, member):
    """Means [B, m, H, K] over the members [B, m, T] of each segment; zero for an empty one."""
    count = jnp.maximum(member.sum(-1), 1)[..., None, None]
    return _einsum("bmt,bthk->bmhk", member.astype(x.dtype), x) / count


def _reference(q, k, v, kernel, *, mask, num_landmarks, pinv_iterations, pinv_init, landmarks):
    """The definition, one head of one example at a time, as [T, T] matrices that multiply the values."""
    B, T = q.shape[:2]
    m = num_landmarks
    real = jnp.ones((B, T), bool) if mask is None else mask
    per_head = functools.partial(_reference_softmaxes, m=m, padded=landmarks == "padded")
    over_heads = jax.vmap(per_head, in_axes=(1, 1, None))
    exact, k1, k2, k3, short = jax.vmap(over_heads)(q, k, real)
    if pinv_init == "per_matrix":
        c = jnp.max(jnp.sum(k2, axis=2, keepdims=True), axis=3, keepdims=True)
    elif pinv_init == "global":
        c = jnp.max(jnp.sum(k2, axis=2))
    else:
        c = jnp.max(jnp.sum(k2, axis=2)) * jnp.max(jnp.sum(k2, axis=3))
    mul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    eye = jnp.eye(k2.shape[-1], dtype=k2.dtype)

    def step(_, z):
        kz = mul(k2, z)
        return mul(z, 13 * eye - 15 * kz + 7 * mul(kz, kz) - mul(kz, mul(kz, kz))) / 4

    z = jax.lax.fori_loop(0, pinv_iterations, step, k2.transpose(0, 1, 3, 2) / c)
    matrix = jnp.where(short[:, :, None, None], exact, mul(mul(k1, z), k3))
    if kernel is not None:
        tap = jnp.arange(T)[None, :] - jnp.arange(T)[:, None] + kernel.shape[0] // 2
        inside = (tap >= 0) & (tap < kernel.shape[0])
        matrix = matrix + jnp.where(inside, kernel.T[:, jnp.clip(tap, 0, kernel.shape[0] - 1)], 0)
    return mul(matrix, v.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3)


def _reference_softmaxes(q, k, real, *, m, padded):
    """Exact attention [T, T], the three softmaxes and whether exact attention is due, for q, k [T, K], real [T]."""
    T = q.shape[0]
    mul = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    exact = _softmax(mul(q, k.T), real[None, :])
    n = jnp.sum(real)
    short = jnp.asarray(m >= T) if padded or m >= T else n <= m
    if m >= T:
        eye = jnp.eye(m, dtype=q.dtype)
        return exact, jnp.zeros((T, m), q.dtype), eye, jnp.zeros((m, T), q.dtype), short
    if padded:
        average = jnp.kron(jnp.eye(m, dtype=q.dtype), jnp.full((1, T // m), m / T, q.dtype))
        used = jnp.ones((m,), bool)
    else:
        sizes = n // m + (jnp.arange(m) >= m - n % m)
        start = jnp.cumsum(sizes) - sizes
        rank = jnp.cumsum(real) - 1
        inside = real & (rank >= start[:, None]) & (rank < (start + sizes)[:, None])
        average = inside.astype(q.dtype) / jnp.maximum(sizes, 1)[:, None]
        used = sizes > 0
    q_mean, k_mean = mul(average, q), mul(average, k)
    k1 = _softmax(mul(q, k_mean.T), used[None, :])
    k2 = jnp.where(short, jnp.eye(m, dtype=q.dtype), _softmax(mul(q_mean, k_mean.T)))
    return exact, k1, k2, _softmax(mul(q_mean, k.T), real[None, :]), short


_IMPLEMENTATIONS = {"xla": _xla, "reference": _reference}


def _check_arrays(q, k, v, mask, kernel):
    if q.ndim != 4 or q.shape[1] < 1 or q.shape != k.shape or v.ndim != 4 or v.shape[:3] != q.shape[:3]:
        raise ValueError(
            "nystrom_attention needs q, k [B, T, H, K] and v [B, T, H, V] of one B, T > 0 and H; "
            f"got {q.shape}, {k.shape}, {v.shape}."
        )
    if mask is not None and mask.dtype != jnp.bool_:
        raise TypeError(f"mask must be boolean, True at real tokens; its dtype is {mask.dtype}.")
    if mask is not None and mask.shape != q.shape[:2]:
        raise ValueError(f"mask must be [B, T] = {q.shape[:2]}; its shape is {mask.shape}.")
    if kernel is not None and (kernel.ndim != 2 or kernel.shape[1] != q.shape[2] or kernel.shape[0] % 2 == 0):
        raise ValueError(f"conv_kernel must be [W, H] with odd W and H = {q.shape[2]}; its shape is {kernel.shape}.")
