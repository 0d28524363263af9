"""Models with perturbed arithmetic, to simulate the rounding of other machines, and larger errors."""

import copy
from collections.abc import Iterator

import torch

from egic.model import Model


def noisy(model: Model, relative: float, seed: int = 0) -> Model:
    """Add Gaussian noise to the output of every layer of h_s and ChARM; sigma is `relative` times the value."""
    changed = Model(copy.deepcopy(model.codec), model.orp)
    generator = torch.Generator().manual_seed(seed)

    def disturb(module, inputs, output):
        return output * (1 + relative * torch.randn(output.shape, generator=generator, dtype=output.dtype))

    for part in (changed.codec.h_s, changed.codec.charm):
        for module in part.modules():
            if not list(module.children()):
                module.register_forward_hook(disturb)
    return changed


def variants(model: Model) -> Iterator[tuple[str, Model, int]]:
    """(name, model, number of threads) with which a file that was written with one thread must decode."""
    yield "noise 1e-5", noisy(model, 1e-5), 1
    yield "float64", Model(copy.deepcopy(model.codec).double(), model.orp), 1
    yield "2 threads", model, 2
    yield "channels-last", Model(copy.deepcopy(model.codec).to(memory_format=torch.channels_last), model.orp), 1
    if torch.cuda.is_available():
        yield "cuda", Model(copy.deepcopy(model.codec), copy.deepcopy(model.orp)).to("cuda"), 1
