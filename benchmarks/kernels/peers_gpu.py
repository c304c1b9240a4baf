"""The peers that need a GPU and a package with kernels of its own. Written from their documented signatures."""


def _last(x):
    return x.transpose(1, 2).contiguous()


def selective_scan_mamba_ssm(u, dt, A, B, C, D, z, dt_bias):
    """The CUDA kernel of mamba-ssm; its layout is [B, D, T]."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    y = selective_scan_fn(_last(u), _last(dt), A, _last(B), _last(C), D, _last(z), dt_bias, delta_softplus=True)
    return _last(y)


def delta_rule_fla(q, k, v, beta):
    """The Triton kernels of flash-linear-attention, which take bfloat16 and no float32."""
    from fla.ops.delta_rule import chunk_delta_rule

    return chunk_delta_rule(q, k, v, beta, scale=q.shape[-1] ** -0.5)[0]


def linear_attention_fla(q, k, v, log_decay):
    """The Triton kernels of flash-linear-attention, of bfloat16 arrays and decays in float32."""
    from fla.ops.simple_gla import chunk_simple_gla

    return chunk_simple_gla(q, k, v, g=log_decay, scale=q.shape[-1] ** -0.5)[0]


def conv_cuda(x, w, b):
    """The CUDA kernel of causal-conv1d; its layout is [B, D, T]."""
    from causal_conv1d import causal_conv1d_fn

    return _last(causal_conv1d_fn(_last(x), w.t().contiguous(), b, activation="silu"))
