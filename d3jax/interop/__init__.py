"""Models of others: PyTorch's and safetensors files in, safetensors out."""

from .convert import Report, from_torch, to_torch
from .read import read_tensors, write_tensors

__all__ = ["Report", "from_torch", "read_tensors", "to_torch", "write_tensors"]
