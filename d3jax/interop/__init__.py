"""Import of models from PyTorch and safetensors files, and export to safetensors."""

from .convert import Report, from_torch, to_torch
from .read import read_tensors, write_tensors

__all__ = ["Report", "from_torch", "read_tensors", "to_torch", "write_tensors"]
