"""Published weights: reading and writing the tensors of other code bases, under their names.

`load_pretrained` and `save_pretrained` do whole models; `load` and `dump` any module that a format has names for, such
as one Mamba layer; `read_tensors` only reads files, without PyTorch and without running anything in them.
"""

from zoo.weights.errors import WeightsError
from zoo.weights.files import read_tensors, write_safetensors
from zoo.weights.pretrained import dump_tensors as dump
from zoo.weights.pretrained import formats, load, load_pretrained, save_pretrained

__all__ = [
    "WeightsError",
    "dump",
    "formats",
    "load",
    "load_pretrained",
    "read_tensors",
    "save_pretrained",
    "write_safetensors",
]
