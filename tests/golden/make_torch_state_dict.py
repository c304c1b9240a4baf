"""Writes torch_state_dict.pt, a file of torch.save with all that a state dict may hold. Needs PyTorch.

    python tests/golden/make_torch_state_dict.py

Values are those of `expected` in tests/weights/test_torch_zip.py.
"""

from collections import OrderedDict
from pathlib import Path

import torch

base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
layer = torch.nn.BatchNorm1d(3)
with torch.no_grad():
    layer.running_var.copy_(torch.tensor([1.0, 2.0, 3.0]))
tensors = OrderedDict(
    plain=base,
    transposed=base.T,
    part=base[1:3, ::2],
    parameter=torch.nn.Parameter(torch.tensor([0.5, -0.25])),
    scalar=torch.tensor(7, dtype=torch.int64),
    empty=torch.zeros(0, 3),
    brain=torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    half=torch.tensor([0.5], dtype=torch.float16),
    double=torch.tensor([1e-300], dtype=torch.float64),
    bytes=torch.tensor([0, 255], dtype=torch.uint8),
    flags=torch.tensor([True, False]),
    **{f"norm.{name}": tensor for name, tensor in layer.state_dict().items()},
)
torch.save(tensors, Path(__file__).with_name("torch_state_dict.pt"))
