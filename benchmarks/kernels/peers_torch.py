"""The peers in PyTorch: eager, well-written, gradients by its autograd; and what installed packages offer.

Hugging Face's functions hand over to other packages' kernels where these are installed; unwrapped, they do not.
"""

import inspect

import torch
import torch.nn.functional as F

CHUNK = 64


def selective_scan_loop(u, dt, A, B, C, D, z, dt_bias):
    """One token a turn, the state [B, N, D]; nothing of the size of all states is made up front."""
    dt = F.softplus(dt + dt_bias)
    rates = A.t().contiguous()
    state = u.new_zeros(u.shape[0], *rates.shape)
    outputs = []
    for dt_t, du_t, b_t, c_t in zip(dt.unbind(1), (dt * u).unbind(1), B.unbind(1), C.unbind(1), strict=True):
        state = torch.exp(dt_t[:, None] * rates) * state + b_t[:, :, None] * du_t[:, None]
        outputs.append((state * c_t[:, :, None]).sum(1))
    return (torch.stack(outputs, 1) + D * u) * F.silu(z)


def selective_scan_transformers(u, dt, A, B, C, D, z, dt_bias):
    """What Hugging Face's Mamba runs without CUDA kernels; its layout is [B, D, T]."""
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    last = lambda x: x.transpose(1, 2)  # noqa: E731
    scan = inspect.unwrap(mamba_selective_scan)
    y = scan(last(u), last(dt), A, last(B), last(C), D, last(z), dt_bias, delta_softplus=True)
    return last(y)


def selective_scan_mambapy(u, dt, A, B, C, D, z, dt_bias):
    """The parallel scan of mambapy on all states at once, [B, T, D, N], as its block calls it."""
    from mambapy.pscan import pscan

    dt = F.softplus(dt + dt_bias)[..., None]
    states = pscan(torch.exp(dt * A), dt * B[:, :, None] * u[..., None])
    return ((states @ C[..., None])[..., 0] + D * u) * F.silu(z)


def _chunks(x):
    """[B, T, H, ...] to [B, H, T / CHUNK, CHUNK, ...], zeros after the end."""
    x = x.transpose(1, 2)
    missing = -x.shape[2] % CHUNK
    if missing:
        x = torch.cat([x, x.new_zeros(*x.shape[:2], missing, *x.shape[3:])], 2)
    return x.reshape(*x.shape[:2], -1, CHUNK, *x.shape[3:])


def _joined(x, length):
    """The way back from `_chunks`."""
    return x.flatten(2, 3)[:, :, :length].transpose(1, 2)


def delta_rule_chunked(q, k, v, beta):
    """WY form by chunks of 64: one triangular solve for all chunks, two products a chunk in the loop over them."""
    length = q.shape[1]
    q, k, v, beta = (_chunks(x) for x in (q * q.shape[-1] ** -0.5, k, v, beta[..., None]))
    k_beta = k * beta
    # solve_triangular reads below the diagonal only, and takes the diagonal for ones.
    solved = torch.linalg.solve_triangular(
        k_beta @ k.mT, torch.cat([k_beta, v * beta], -1), upper=False, unitriangular=True
    )
    w, u = solved.split([k.shape[-1], v.shape[-1]], -1)
    state = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1])
    states, news = [], []
    for k_c, w_c, u_c in zip(k.unbind(2), w.unbind(2), u.unbind(2), strict=True):
        states.append(state)
        news.append(u_c - w_c @ state)
        state = state + k_c.mT @ news[-1]
    y = q @ torch.stack(states, 2) + (q @ k.mT).tril() @ torch.stack(news, 2)
    return _joined(y, length)


def delta_rule_transformers(q, k, v, beta):
    """What Hugging Face's Qwen3-Next runs without Triton kernels, chunks of 64, without decay."""
    from transformers.models.qwen3_next.modeling_qwen3_next import torch_chunk_gated_delta_rule

    rule = inspect.unwrap(torch_chunk_gated_delta_rule)
    return rule(q, k, v, torch.zeros_like(beta), beta, chunk_size=CHUNK)[0]


def linear_attention_chunked(q, k, v, log_decay):
    """Chunks of 64: attention within, all chunks at once, and a loop over chunks for the states between."""
    length = q.shape[1]
    q, k, v, log_decay = (_chunks(x) for x in (q * q.shape[-1] ** -0.5, k, v, log_decay))
    total = log_decay.cumsum(-1)
    future = torch.ones(CHUNK, CHUNK, dtype=torch.bool, device=q.device).triu(1)
    decay = (total[..., :, None] - total[..., None, :]).masked_fill(future, -torch.inf).exp()
    end = total[..., -1:]
    added = (k * (end - total).exp()[..., None]).mT @ v
    state = torch.zeros_like(added[:, :, 0])
    states = []
    for added_c, decay_c in zip(added.unbind(2), end.exp()[..., None].unbind(2), strict=True):
        states.append(state)
        state = decay_c * state + added_c
    y = (q @ k.mT * decay) @ v + (q * total.exp()[..., None]) @ torch.stack(states, 2)
    return _joined(y, length)


def conv_torch(x, w, b):
    """`torch.nn.functional.conv1d`, one group per channel; its layout is [B, D, T]."""
    size, width = w.shape
    y = F.conv1d(x.transpose(1, 2), w.t()[:, None], b, padding=size - 1, groups=width)
    return F.silu(y[..., : x.shape[1]]).transpose(1, 2)
