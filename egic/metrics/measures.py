"""Which measures can be made on this machine, and the pretrained networks that they run on."""

import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from egic.errors import UserError
from egic.metrics import fid_kid, pretrained, quality

log = logging.getLogger(__name__)

NAMES = (*quality.NAMES, *fid_kid.NAMES)
"""Every measure, in the order of tables."""
DEFAULT = tuple(name for name in NAMES if name not in ("fid64", "kid64"))
"""Measures that are made unless others are named: FID/64 and KID/64 take three times as long as these together."""
NETWORK_OF: Mapping[str, str] = {**quality.NETWORK_OF, **dict.fromkeys(fid_kid.NAMES, fid_kid.NETWORK)}
"""Measure -> the network of `egic.metrics.pretrained` it runs on."""
PACKAGES = {"lpips_alex": "lpips", "lpips_vgg": "lpips", "dists": "torchmetrics"}
PACKAGES |= dict.fromkeys(fid_kid.NAMES, "torch_fidelity")


@dataclass(frozen=True, kw_only=True)
class Measures:
    """What is measured: names, the files their networks come from (by measure), and weights by network."""

    names: tuple[str, ...]
    sources: dict[str, str]
    states: dict[str, dict[str, Tensor]]

    @property
    def of_pictures(self) -> tuple[str, ...]:
        """Names of the measures of single pictures."""
        return tuple(name for name in quality.NAMES if name in self.names)

    @property
    def of_sets(self) -> tuple[str, ...]:
        """Names of the measures of sets of pictures: FID and KID."""
        return tuple(name for name in fid_kid.NAMES if name in self.names)

    @property
    def patches(self) -> tuple[int, ...]:
        """Sides of the patches that `of_sets` needs, in pixels."""
        return tuple(dict.fromkeys(fid_kid.PATCH_OF[name] for name in self.of_sets))

    def quality(self, device: str | torch.device = "cpu") -> quality.Quality:
        """The measures of a picture, with their networks on a device."""
        return quality.Quality(self.of_pictures, self.states, device)

    def features(self, device: str | torch.device = "cpu") -> Callable[[np.ndarray], dict[int, np.ndarray]]:
        """The features of a picture's patches by their side: uint8 (H, W, 3) -> {side: (patches, 2048)}."""
        if not self.patches:
            return lambda x: {}
        network = fid_kid.Features(self.states[fid_kid.NETWORK], device)
        return lambda x: {patch: network(x, patch) for patch in self.patches}


def find_measures(wanted: Sequence[str] = (), folder: str = "", strict: bool = True) -> Measures:
    """The wanted measures with their weights, or without `wanted` all of DEFAULT that are available.

    folder: with weights, searched first. Measures that are not available are left out with a warning; raises UserError
    for one of `wanted` when `strict`.
    """
    names, sources, states = ["psnr_db"], {}, {}
    reasons: dict[str | None, str] = {}
    for name in [n for n in NAMES if n != "psnr_db" and n in (wanted or DEFAULT)]:
        network = NETWORK_OF.get(name)
        try:
            if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
                raise UserError(f"the package {PACKAGES[name]} is not installed: pip install 'egic[train]'")
            if network in reasons:
                raise UserError(reasons[network])
            if network and network not in states:
                try:
                    sources[network], states[network] = pretrained.find(network, folder)
                except UserError as error:
                    reasons[network] = str(error)  # one download that fails is enough
                    raise
        except UserError as error:
            if wanted and strict:
                raise UserError(f"{name}: {error}; or leave it out of --metrics") from error
            log.warning("%s is left out: %s", name, error)
        else:
            names.append(name)
    used = {name: sources[NETWORK_OF[name]] for name in names if name in NETWORK_OF}
    return Measures(names=tuple(names), sources=used, states=states)


def missing_networks(wanted: Sequence[str] = (), folder: str = "") -> list[str]:
    """Networks of these measures whose weights are not on this machine, so that they would be downloaded."""
    networks = {NETWORK_OF[name] for name in wanted or DEFAULT if name in NETWORK_OF}
    return sorted(network for network in networks if pretrained.on_disk(network, folder) is None)
