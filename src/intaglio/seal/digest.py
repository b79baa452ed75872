"""One SHA-256 for a module's weights, whatever file they came from."""

import hashlib

import torch
from torch import nn


def weights_digest(module: nn.Module) -> str:
    """Hex SHA-256 over name, type, shape and bytes of every tensor of the state dict, in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
