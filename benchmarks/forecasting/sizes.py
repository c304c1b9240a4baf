"""The shape that is timed."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The authors' ETTh1 run at horizon 96."""

    batch: int = 32
    lookback: int = 96
    horizon: int = 96
    num_variates: int = 7
    num_marks: int = 4
    d_model: int = 256
    d_ff: int = 256
    num_layers: int = 2
    num_heads: int = 8
    dropout: float = 0.1
    lr: float = 1e-4


TINY = Sizes(batch=3, lookback=8, horizon=4, num_variates=3, num_marks=2, d_model=8, d_ff=8, num_layers=1, num_heads=2)


def make_batch(sizes: Sizes) -> dict[str, np.ndarray]:
    """Random walks "x" [B, L, N], "y" [B, H, N], and random "marks" [B, L + H, M]."""
    draw = np.random.default_rng(0)
    length = sizes.lookback + sizes.horizon
    series = draw.normal(size=(sizes.batch, length, sizes.num_variates)).cumsum(axis=1).astype(np.float32)
    marks = draw.uniform(-0.5, 0.5, (sizes.batch, length, sizes.num_marks)).astype(np.float32)
    return {"x": series[:, : sizes.lookback], "y": series[:, sizes.lookback :], "marks": marks}
