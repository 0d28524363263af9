"""LPIPS and DISTS: distances between pictures in the features of a pretrained network.

Their learned weights ship with the packages `lpips` and `torchmetrics`; the backbones (AlexNet, VGG16) come from
`egic.metrics.pretrained`.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from egic.errors import UserError


class LPIPS(nn.Module):
    """LPIPS v0.1 of pictures (B, 3, H, W) in 0..255; forward returns the mean distance over the batch, a scalar.

    backbone: convolutions of AlexNet (net "alex") or VGG16 ("vgg") by name, as from `pretrained.find`; None for random
    ones of seed 0. Raises UserError when the package `lpips` is missing. Source: Zhang et al., arXiv 1801.03924.
    """

    def __init__(self, backbone: Mapping[str, Tensor] | None, net: str = "alex"):
        super().__init__()
        try:
            import lpips  # imports torchvision: only where the distance is needed
            from lpips import pretrained_networks
        except ImportError as e:
            raise UserError(f"LPIPS needs the package lpips ({e}): pip install 'egic[train]'") from e
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), _small_vgg16(pretrained_networks.tv):
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            self.net = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
        if backbone is not None:
            _fill(self.net.net, backbone)
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)  # VGG16 takes 0.5 to 0.8 of the time

    def distances(self, x_hat: Tensor, x: Tensor) -> Tensor:
        """(B, 3, H, W) in 0..255, twice -> the distance of each pair, (B,)."""
        return self.net(x_hat / 127.5 - 1, x / 127.5 - 1).flatten()

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return self.net(x_hat / 127.5 - 1, x / 127.5 - 1).mean()


def dists(backbone: Mapping[str, Tensor]) -> nn.Module:
    """DISTS of torchmetrics on pictures (B, 3, H, W) in [0, 1]; calling it returns a distance per pair.

    backbone: convolutions of VGG16. Raises UserError when torchmetrics is missing. Source: Ding et al., arXiv
    2004.07728.
    """
    try:
        from torchmetrics.functional.image import dists as library
    except ImportError as e:
        raise UserError(f"DISTS needs the package torchmetrics ({e}): pip install 'egic[train]'") from e
    with torch.random.fork_rng(devices=[]), _small_vgg16(library):
        network = library.DISTSNetwork()
    _fill(network, backbone)
    return network.requires_grad_(False).eval().to(memory_format=torch.channels_last)


@contextmanager
def _small_vgg16(module: ModuleType) -> Iterator[None]:
    """Within this block, `module.vgg16` builds VGG16's convolutions without weights.

    Both libraries otherwise build torchvision's whole VGG16 first, whose classifier has 495 MB, or download it.
    """
    from torchvision.models.vgg import cfgs, make_layers

    patched: Any = module
    usual = patched.vgg16
    patched.vgg16 = lambda **_: SimpleNamespace(features=make_layers(cfgs["D"]))
    try:
        yield
    finally:
        patched.vgg16 = usual


def _fill(trunk: nn.Module, backbone: Mapping[str, Tensor]) -> None:
    """Copy the backbone's convolutions into every `<stage>.<layer>.weight` and `.bias` of the trunk."""
    tensors = {name: tensor for name, tensor in trunk.state_dict().items() if name.endswith((".weight", ".bias"))}
    with torch.no_grad():
        for name, tensor in tensors.items():
            tensor.copy_(backbone[name.split(".", 1)[1]])  # slice2.3.weight
    assert len(tensors) == len(backbone)
