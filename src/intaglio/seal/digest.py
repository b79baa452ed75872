"""SHA-256 of a module's weights, whatever file they came from, and of images."""

import hashlib

import torch
from torch import Tensor, nn


def weights_digest(module: nn.Module) -> str:
    """Hex SHA-256 over name, type, shape and bytes of every tensor of the state dict, in the order of their names."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def images_digest(images: Tensor) -> str:
    """Hex SHA-256 over shape and bytes of float32 images, in their order."""
    digest = hashlib.sha256(f"{tuple(images.shape)};".encode())
    digest.update(images.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
