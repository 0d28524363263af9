"""LPIPS (AlexNet) and where its ImageNet backbone comes from; the linear heads ship with the `lpips` package."""

import hashlib
import os
import pickle
import urllib.error
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from egic.errors import UserError

ALEXNET_URL = "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth"
FILE_NAME = "alexnet_features.pth"
RANDOM = "random backbone, seed 0"
SHAPES = {
    "0": (64, 3, 11, 11),
    "3": (192, 64, 5, 5),
    "6": (384, 192, 3, 3),
    "8": (256, 384, 3, 3),
    "10": (256, 256, 3, 3),
}
"""Kernels of AlexNet's convolutions by their place in torchvision's `features`."""


def find_backbone(source: str, url: str = ALEXNET_URL) -> tuple[str, dict[str, Tensor] | None]:
    """Backbone weights as (what they are, `convolutions` of AlexNet); None stands for a seeded random backbone.

    source: a file (torchvision's AlexNet, or its `features` alone); "random"; "local" for $EGIC_WEIGHTS'
    alexnet_features.pth or, where that is not set, random; "" for that file or torchvision's download (checked and
    cached by torch.hub).
    Raises UserError when nothing can be had, naming both ways out, and for a file that is no AlexNet.
    """
    folder = os.environ.get("EGIC_WEIGHTS")
    if source == "random" or (source == "local" and not folder):
        return RANDOM, None
    if source in ("", "local") and folder:
        source = str(Path(folder) / FILE_NAME)
    if source:
        return _from_file(Path(source))
    try:
        state = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", check_hash=True, progress=False, weights_only=True
        )
    except (urllib.error.URLError, OSError, RuntimeError) as e:
        raise UserError(
            f"LPIPS weights could not be downloaded from {url} ({e}); go online, or give a local copy with "
            f"--lpips-weights FILE or a folder with {FILE_NAME} in EGIC_WEIGHTS"
        ) from e
    return f"torchvision {Path(url).name}", convolutions(state, url)


def convolutions(state: object, where: str) -> dict[str, Tensor]:
    """AlexNet's convolutions (`0.weight`, ...) out of a state dict of the whole net or of its `features`.

    Raises UserError naming what is missing or of another shape. The classifier, 220 MB, is left behind.
    """
    wanted = {f"{i}.weight": shape for i, shape in SHAPES.items()} | {f"{i}.bias": s[:1] for i, s in SHAPES.items()}
    given, wrong = take(state, wanted)
    if wrong:
        raise UserError(f"LPIPS weights {where} lack AlexNet's features {', '.join(wrong)}; give torchvision's file")
    return {k: given[k] for k in wanted}


def load_state(path: Path, what: str, advice: str) -> object:
    """Content of a .pth file, of which nothing is executed. Raises UserError with the advice when it is damaged."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as e:
        reason = (str(e).splitlines() or ["the file ends early"])[0]
        raise UserError(f"{what} weights {path} cannot be read ({reason}); {advice}") from e


def take(state: object, shapes: Mapping[str, tuple[int, ...]]) -> tuple[dict[str, Tensor], list[str]]:
    """A state dict without the leading `features.` of its names, and which of the named tensors it lacks."""
    given = {str(k).removeprefix("features."): v for k, v in state.items()} if isinstance(state, Mapping) else {}
    return given, [k for k, shape in shapes.items() if tuple(getattr(given.get(k), "shape", ())) != shape]


def _from_file(path: Path) -> tuple[str, dict[str, Tensor]]:
    if not path.is_file():
        raise UserError(f"LPIPS weights {path} do not exist; give torchvision's AlexNet, or --lpips-weights random")
    state = load_state(path, "LPIPS", "give AlexNet's .pth")
    name = f"{path.name} sha256:{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
    return name, convolutions(state, str(path))


class LPIPS(nn.Module):
    """LPIPS v0.1 with AlexNet on pictures (B, 3, H, W) in 0..255; forward returns the mean distance, a scalar.

    backbone: as from `find_backbone`.
    """

    def __init__(self, backbone: Mapping[str, Tensor] | None):
        super().__init__()
        import lpips  # imports torchvision: only where the distance is really needed

        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            self.net = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        if backbone is not None:
            names = self.net.net.state_dict()
            self.net.net.load_state_dict({name: backbone[name.split(".", 1)[1]] for name in names})  # slice2.3.weight
        self.requires_grad_(False).eval()

    def forward(self, x_hat: Tensor, x: Tensor) -> Tensor:
        return self.net(x_hat / 127.5 - 1, x / 127.5 - 1).mean()
