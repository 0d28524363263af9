"""Copy weights of the TensorFlow reference into our modules, by the reference's variable paths."""

import re
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from egic.errors import UserError
from egic.networks.codec import Codec
from egic.networks.discriminator import Discriminator
from egic.networks.orp import ResidualHead

_ROOTS = {
    "g_a": "analysis_transform",
    "g_s": "synthesis_transform",
    "h_a": "hyper_analysis_transform",
    "h_s": "hyper_synthesis_transform",
}


def _keep(a: np.ndarray) -> np.ndarray:
    return a


def _dense(a: np.ndarray) -> np.ndarray:
    return a.T


def _conv(a: np.ndarray) -> np.ndarray:
    return a.transpose(3, 2, 0, 1)


def _signal_conv(a: np.ndarray) -> np.ndarray:
    """tfc.SignalConv2D(corr=False) convolves, torch correlates: the kernel is flipped."""
    return _conv(a[::-1, ::-1])


def _gain(a: np.ndarray) -> np.ndarray:
    return a.reshape(-1, 1, 1, 1)


Layout = Callable[[np.ndarray], np.ndarray]


def _transform_path(name: str, root: str, resample: str) -> tuple[str, Layout]:
    """The reference path of a parameter of an Analysis or Synthesis, such as stages.0.blocks.1.attn.qkv.weight."""
    if name.startswith("patch_embed"):
        return (f"{root}/patch_embed/kernel", _conv) if name.endswith("weight") else (f"{root}/patch_embed/bias", _keep)
    _, stage, rest = name.split(".", 2)
    if rest.startswith("resample."):
        rest = rest.removeprefix("resample.")
        path = f"{root}/stage{stage}/{resample}"
    else:
        _, block, rest = rest.split(".", 2)
        path = f"{root}/stage{stage}/block{block}"
    if "norm" in rest:
        leaf = rest.replace(".weight", "/gamma").replace(".bias", "/beta")
        return f"{path}/{leaf}", _keep
    if rest.endswith(".weight"):
        return f"{path}/{rest.removesuffix('.weight').replace('.', '/')}/kernel", _dense
    return f"{path}/{rest.replace('.', '/')}", _keep


def _codec_path(name: str) -> tuple[str, Layout]:
    part, rest = name.split(".", 1)
    if part in _ROOTS:
        return _transform_path(rest, _ROOTS[part], "downsample" if part.endswith("_a") else "upsample")
    if part == "prior":
        kind, index = rest.split(".")
        singular = {"matrices": "matrix", "biases": "bias", "factors": "factor"}[kind]
        return f"hyperprior/{singular}_{index}", _keep
    nets, k, layer, leaf = rest.split(".")  # charm.mean_nets.3.2.weight: layers 0, 2, 4 are the convolutions
    path = f"cc_{nets.removesuffix('_nets')}_transforms/{k}/layer_{int(layer) // 2}"
    return (f"{path}/kernel", _signal_conv) if leaf == "weight" else (f"{path}/bias", _keep)


def _orp_path(name: str) -> tuple[str, Layout]:
    return _transform_path(name.replace("stage.", "stages.0.", 1), "orp", "upsample")


def _disc_path(name: str) -> tuple[str, Layout]:
    name = re.sub(r"^(down|up)\.(\d+)\.", r"\1\2.", name)
    path, leaf = "disc/" + name.split(".parametrizations")[0].rsplit(".bias", 1)[0].replace(".", "/"), name
    if leaf.endswith("original0"):
        return f"{path}/g", _gain
    if leaf.endswith("original1"):
        return f"{path}/v", _conv
    if leaf == "out.weight":
        return "disc/out/kernel", _conv
    return f"{path}/bias", _keep


def reference_paths(model: nn.Module) -> Iterator[tuple[Tensor, str, Layout]]:
    """Parameters of a Codec, ResidualHead or Discriminator, each with its reference path and conversion of layout."""
    rules = {Codec: _codec_path, ResidualHead: _orp_path, Discriminator: _disc_path}
    if type(model) not in rules:
        raise ValueError(
            f"the reference has no weights for a {type(model).__name__}; give a Codec, ResidualHead or Discriminator"
        )
    for name, parameter in model.named_parameters():
        yield parameter, *rules[type(model)](name)


@torch.no_grad()
def load_reference_weights(model: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Copy the reference's variables into a Codec, ResidualHead or Discriminator.

    arrays: by reference path (`analysis_transform/stage0/block0/norm1/gamma`), in the reference's layout.
    Raises UserError naming every missing, surplus or misshaped variable; the model is then unchanged.
    """
    wanted = {path: (parameter, layout) for parameter, path, layout in reference_paths(model)}
    problems = [f"missing {p}" for p in wanted if p not in arrays]
    problems += [f"surplus {p}" for p in arrays if p not in wanted]
    values = {}
    for path in wanted.keys() & arrays.keys():
        parameter, layout = wanted[path]
        array = np.asarray(arrays[path], np.float32)
        ndim_ok = layout in (_keep, _gain) or array.ndim == (2 if layout is _dense else 4)
        value = layout(array) if ndim_ok else array
        if value.shape != tuple(parameter.shape):
            problems.append(f"misshaped {path}: {array.shape} does not fit {tuple(parameter.shape)}")
        values[path] = value
    if problems:
        raise UserError(f"reference weights do not fit a {type(model).__name__}: " + "; ".join(sorted(problems)))
    for path, (parameter, _) in wanted.items():
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(values[path])))
