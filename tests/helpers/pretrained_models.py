"""Small models of every kind that has a published format."""

import dataclasses

from flax import nnx

import zoo
from zoo.encoder import EncoderConfig
from zoo.models.causal_lm import CausalLM

RECURRENT = EncoderConfig(
    d_model=16, num_layers=2, vocab_size=24, norm_kind="rms", positions="none", causal=True, ffn="none", norm_eps=1e-5
)
FLA = dataclasses.replace(RECURRENT, ffn="glu", ffn_bias=False, activation="silu", d_ff=24)


def lm(config, mixer, tie=False, **options):
    config = dataclasses.replace(config, mixer=mixer, mixer_options=options)
    return CausalLM(config, tie_embeddings=tie, rngs=nnx.Rngs(0))


def informer(**options):
    sizes = {"num_variates": 3, "lookback": 16, "horizon": 8, "num_marks": 4}
    return zoo.InformerForecaster(**sizes, d_model=8, num_heads=2, d_ff=12, rngs=nnx.Rngs(0), **options)


def itransformer(**options):
    sizes = {"num_variates": 3, "lookback": 16, "horizon": 8, "num_marks": 4}
    return zoo.ITransformerForecaster(**sizes, d_model=8, num_heads=2, d_ff=12, rngs=nnx.Rngs(0), **options)


def nystromformer(**options):
    sizes = {"vocab_size": 20, "d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 24, "max_len": 32}
    published = {"num_landmarks": 8, "conv_kernel_size": 5, "pinv_init": "global", "landmarks": "padded"}
    return zoo.NystromformerEncoder(**sizes, **{**published, **options}, rngs=nnx.Rngs(0))


MODELS = {
    "mamba": lambda: lm(RECURRENT, "mamba", tie=True, d_state=4, proj_bias=True, conv_bias=False),
    "mamba2": lambda: lm(RECURRENT, "mamba2", d_state=4, d_head=8, num_groups=2),
    "deltanet": lambda: lm(FLA, "deltanet", num_heads=2, use_gate=True, norm_eps=1e-5, allow_neg_eigval=True),
    "deltanet_plain": lambda: lm(FLA, "deltanet", num_heads=2, use_beta=False, qk_norm="sum", qk_activation="relu"),
    "gated_deltanet": lambda: lm(FLA, "gated_deltanet", num_heads=2, d_head=4, num_v_heads=4),
    "gated_deltanet_plain": lambda: lm(FLA, "gated_deltanet", num_heads=2, d_head=4, use_gate=False),
    "nystromformer": nystromformer,
    "nystromformer_lm": lambda: nystromformer(head="masked_lm", num_landmarks=32, activation="gelu_exact"),
    "informer": informer,
    "informer_stack": lambda: informer(stack=(2, 1), time_embedding="learned", factor=3, mix=False),
    "informer_fixed": lambda: informer(time_embedding="fixed", distil=False, activation="relu"),
    "itransformer": lambda: itransformer(use_norm=False, num_layers=1),
    "iflowformer": lambda: itransformer(mixer="flowformer", mixer_options={"source_clamp": None}),
}
