"""iTransformer in PyTorch, written from its published definition (Liu et al. 2024, arXiv:2310.06625).

Two forms of the same function: attention spelled out, as published code does, or PyTorch's fused operator.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.forecasting.sizes import Sizes


class Attention(nn.Module):
    """Multi-head softmax attention over variates, with dropout of the weights."""

    def __init__(self, width: int, heads: int, dropout: float, fused: bool):
        super().__init__()
        self.heads, self.rate, self.fused = heads, dropout, fused
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, count, width = x.shape
        split = (batch, count, self.heads, width // self.heads)
        q, k, v = (part(x).view(split).transpose(1, 2) for part in (self.query, self.key, self.value))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.rate if self.training else 0.0)
        else:
            weights = torch.softmax(q @ k.transpose(2, 3) / math.sqrt(split[3]), dim=-1)
            y = F.dropout(weights, self.rate, self.training) @ v
        return self.out(y.transpose(1, 2).reshape(batch, count, width))


class Layer(nn.Module):
    """Attention and feed-forward part, each with dropout, residual and a norm after it."""

    def __init__(self, sizes: Sizes, fused: bool):
        super().__init__()
        self.attention = Attention(sizes.d_model, sizes.num_heads, sizes.dropout, fused)
        self.up, self.down = nn.Linear(sizes.d_model, sizes.d_ff), nn.Linear(sizes.d_ff, sizes.d_model)
        self.norm1, self.norm2 = nn.LayerNorm(sizes.d_model), nn.LayerNorm(sizes.d_model)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm1(x + self.dropout(self.attention(x)))
        y = self.dropout(F.gelu(self.up(x)))
        return self.norm2(x + self.dropout(self.down(y)))


class ITransformer(nn.Module):
    """[B, L, N] and marks [B, L, M] to [B, H, N]."""

    def __init__(self, sizes: Sizes, fused: bool = False):
        super().__init__()
        self.embedding = nn.Linear(sizes.lookback, sizes.d_model)
        self.layers = nn.ModuleList(Layer(sizes, fused) for _ in range(sizes.num_layers))
        self.norm = nn.LayerNorm(sizes.d_model)
        self.projection = nn.Linear(sizes.d_model, sizes.horizon)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: torch.Tensor, marks: torch.Tensor) -> torch.Tensor:
        mean = x.mean(dim=1, keepdim=True).detach()
        x = x - mean
        std = torch.sqrt(x.var(dim=1, keepdim=True, unbiased=False) + 1e-5)
        variates = x.shape[2]
        tokens = torch.cat([x / std, marks], dim=2).transpose(1, 2)
        h = self.dropout(self.embedding(tokens))
        for layer in self.layers:
            h = layer(h)
        y = self.projection(self.norm(h)).transpose(1, 2)[:, :, :variates]
        return y * std + mean


def as_zoo(named: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Parameters, or their gradients, by the names and in the layout of `zoo`'s model: nested dicts."""
    tree: dict[str, Any] = {}
    inner = {"attention": ["mixer", "projections"], "up": ["ffn", "up"], "down": ["ffn", "down"]}
    inner |= {"norm1": ["mixer_norm"], "norm2": ["ffn_norm"]}
    for name, tensor in named.items():
        parts = name.split(".")
        if parts[0] == "layers":
            parts = [*parts[:2], *inner[parts[2]], *parts[3:]]
        value = tensor.detach().numpy()
        if parts[-1] == "weight":
            parts[-1] = "kernel" if value.ndim == 2 else "scale"
            value = value.T
        node = tree
        for part in parts[:-1]:
            node = node.setdefault(part, {})
        node[parts[-1]] = np.array(value)
    return tree


class Trainer:
    """A model, its optimizer and a batch.

    Args:
      sizes: of the model.
      batch: "x", "marks", "y".
      tuned: the fused attention and the fused Adam.
    """

    def __init__(self, sizes: Sizes, batch: dict[str, np.ndarray], *, tuned: bool):
        torch.manual_seed(0)
        self.model = ITransformer(sizes, fused=tuned)
        self.function: Any = self.model
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=sizes.lr, fused=tuned or None)
        self.x, self.y = torch.from_numpy(batch["x"]), torch.from_numpy(batch["y"])
        self.marks = torch.from_numpy(np.ascontiguousarray(batch["marks"][:, : sizes.lookback]))

    def compile(self) -> None:
        """From now on steps go through `torch.compile`."""
        self.function = torch.compile(self.model)

    def check(self) -> tuple[np.ndarray, dict[str, Any]]:
        """The forecast without dropout, and the gradients of its mean squared error."""
        self.model.eval()
        y = self.model(self.x, self.marks)
        self.model.zero_grad()
        F.mse_loss(y, self.y).backward()
        gradients = {name: parameter.grad for name, parameter in self.model.named_parameters()}
        return y.detach().numpy(), as_zoo({name: grad for name, grad in gradients.items() if grad is not None})

    def step(self) -> torch.Tensor:
        """One update with dropout; the loss stays a tensor."""
        self.model.train()
        self.optimizer.zero_grad()
        loss = F.mse_loss(self.function(self.x, self.marks), self.y)
        loss.backward()
        self.optimizer.step()
        return loss
