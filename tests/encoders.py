"""A discriminator's frozen encoder for tests: timm's smallest model, with random weights in a local file."""

from pathlib import Path

import safetensors.torch
import torch

NAME = "test_efficientnet"  # 16, 24, 32, 48, 64 channels at strides 2 to 32


def write_weights(path: Path, name: str = NAME, seed: int = 0) -> Path:
    """Random weights of the whole model, with timm's names."""
    import timm

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(name)
        for buffer in model.buffers():  # statistics of normalisation layers are constant by default
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    safetensors.torch.save_file(model.state_dict(), path)
    return path
