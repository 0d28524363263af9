"""How close a decoded picture is to its original: PSNR, MS-SSIM, LPIPS and DISTS of 8-bit RGB pictures.

Every network gets its pictures as published: LPIPS v0.1 in [-1, 1], DISTS in [0, 1], both at full resolution.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from egic.errors import UserError
from egic.metrics import distortion

NAMES = ("psnr_db", "ms_ssim", "lpips_alex", "lpips_vgg", "dists")
"""Columns of the measures, in order."""
NETWORK_OF = {"lpips_alex": "alexnet", "lpips_vgg": "vgg16", "dists": "vgg16"}
"""Measure -> the network in `egic.metrics.pretrained` it runs on; DISTS's own numbers come with torchmetrics."""
MS_SSIM_SIDE = 161
"""Shortest side for MS-SSIM: five scales of its 11-pixel window."""

Measure = Callable[[Tensor, Tensor], float | None]


class Quality:
    """The named measures, with their networks on one device; `quality(x_hat, x)` -> {name: value}.

    states: convolutions (as from `weights.find`) by network, for the measures that have one.
    Raises UserError when a measure's package is missing.
    """

    def __init__(self, names: Sequence[str], states: dict[str, dict[str, Tensor]], device: str | torch.device = "cpu"):
        self.device = torch.device(device)
        make = {"lpips_alex": lambda s: _lpips("alex", s), "lpips_vgg": lambda s: _lpips("vgg", s), "dists": _dists}
        self.measures: dict[str, Measure] = {}
        for name in names:
            if name in NETWORK_OF:
                self.measures[name] = _on(make[name](states[NETWORK_OF[name]]).to(self.device), name)
            else:
                self.measures[name] = {"psnr_db": psnr_db, "ms_ssim": ms_ssim}[name]

    @torch.inference_mode()
    def __call__(self, x_hat: np.ndarray, x: np.ndarray) -> dict[str, float | None]:
        """Both uint8 (H, W, 3). None where a picture is too small for a measure."""
        if x_hat.shape != x.shape or x_hat.dtype != np.uint8 or x.dtype != np.uint8:
            raise ValueError(f"pictures must be uint8 of one shape, got {x_hat.dtype} {x_hat.shape} and {x.shape}")
        pair = [torch.from_numpy(np.array(a)).permute(2, 0, 1)[None].to(self.device) for a in (x_hat, x)]
        return {name: measure(*pair) for name, measure in self.measures.items()}


def psnr_db(x_hat: Tensor, x: Tensor) -> float:
    """PSNR of uint8 (1, 3, H, W) over all three channels; 100 dB for equal pictures."""
    return distortion.psnr_db(x_hat, x).item()


def ms_ssim(x_hat: Tensor, x: Tensor) -> float | None:
    """MS-SSIM (five scales, mean over channels) of uint8 (1, 3, H, W); None below `MS_SSIM_SIDE` pixels a side."""
    from pytorch_msssim import ms_ssim as measure

    return measure(x_hat.float(), x.float(), data_range=255).item() if min(x.shape[2:]) >= MS_SSIM_SIDE else None


def _on(network: nn.Module, name: str) -> Measure:
    """A network as a measure of uint8 (1, 3, H, W); None where its poolings leave nothing of a picture."""
    smallest = 32 if name == "lpips_alex" else 16

    def measure(x_hat: Tensor, x: Tensor) -> float | None:
        if min(x.shape[2:]) < smallest:
            return None
        scale = (lambda a: a.float() / 255) if name == "dists" else (lambda a: a.float() / 127.5 - 1)
        return float(network(scale(x_hat), scale(x)))

    return measure


def _lpips(net: str, state: dict[str, Tensor]) -> nn.Module:
    """LPIPS v0.1; the linear heads ship with the package."""
    try:
        import lpips
        from lpips import pretrained_networks
    except ImportError as e:
        raise UserError(f"LPIPS needs the package lpips ({e}): pip install 'egic[train]'") from e
    with _bare_vgg16(pretrained_networks.tv), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = lpips.LPIPS(net=net, pnet_rand=True, verbose=False)
    return _filled(network, network.net, state)


def _dists(state: dict[str, Tensor]) -> nn.Module:
    """DISTS of torchmetrics."""
    try:
        from torchmetrics.functional.image import dists
    except ImportError as e:
        raise UserError(f"DISTS needs the package torchmetrics ({e}): pip install 'egic[train]'") from e
    with _bare_vgg16(dists):
        network = dists.DISTSNetwork()
    return _filled(network, network, state)


@contextmanager
def _bare_vgg16(module: ModuleType) -> Iterator[None]:
    """Both libraries build torchvision's VGG16 first: with its classifier of 495 MB, or even with a download.

    While this lasts, `module.vgg16` makes the convolutions alone, for `_filled` to fill; the global seed stays.
    """
    from torchvision.models.vgg import cfgs, make_layers

    patched: Any = module
    usual = patched.vgg16
    patched.vgg16 = lambda **_: SimpleNamespace(features=make_layers(cfgs["D"]))
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        patched.vgg16 = usual


def _filled(network: nn.Module, trunk: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """Copy convolutions into every `<stage>.<place>.weight` and `.bias` of the trunk."""
    tensors = {name: tensor for name, tensor in trunk.state_dict().items() if name.endswith((".weight", ".bias"))}
    for name, tensor in tensors.items():
        tensor.copy_(state[name.split(".", 1)[1]])  # slice2.3.weight
    assert len(tensors) == len(state)
    return network.requires_grad_(False).eval()
