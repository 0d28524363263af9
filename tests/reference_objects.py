"""Object names of the reference's checkpoints, from our parameters: the inverse of the importer's translation."""

from collections.abc import Callable

import numpy as np
from torch import nn

from egic.networks.discriminator import Discriminator
from egic.reference import weights
from egic.reference.weights import reference_paths

Arrays = dict[str, np.ndarray]
_UNDO: dict[Callable, Callable] = {
    weights._keep: lambda a: a,
    weights._dense: lambda a: a.T,
    weights._conv: lambda a: a.transpose(2, 3, 1, 0),
    weights._signal_conv: lambda a: a.transpose(2, 3, 1, 0)[::-1, ::-1],
    weights._gain: lambda a: a.reshape(-1),
}
NAMES = {
    "analysis_transform": "analysis_transform",
    "hyper_analysis_transform": "hyper_analysis_transform",
    "synthesis_transform": "synthesis_transform",
    "hyper_synthesis_transform": "hyper_synthesis_mean_scale_transform",
    "orp": "synthesis_transform/cond_model",
}


def arrays_of(*modules: nn.Module) -> Arrays:
    """Our parameters by reference path, in the reference's layout."""
    return {
        path: np.ascontiguousarray(_UNDO[layout](parameter.detach().numpy()))
        for module in modules
        for parameter, path, layout in reference_paths(module)
    }


def object_key(path: str, num_blocks: int = 12) -> str:
    """Reference path -> object path below the model. Of a discriminator with `num_blocks` blocks, Keras puts the latent
    branch before the last one, as it does in the reference."""
    root, *rest = path.split("/")
    if root in NAMES:
        stage, *rest = rest
        if stage == "patch_embed":
            return f"{NAMES[root]}/layer_with_weights-0/{rest[0]}"
        index = int(stage[5:]) + ("analysis" in root)
        if rest[0].startswith("block"):
            rest[0] = f"blocks/{rest[0][5:]}"
        rest = [{"fc1": "layer_with_weights-0", "fc2": "layer_with_weights-1"}.get(r, r) for r in rest]
        return f"{NAMES[root]}/layer_with_weights-{index}/" + "/".join(rest)
    if root == "hyperprior":
        kind, index = rest[0].split("_")
        return f"hyperprior/_base/_{ {'matrix': 'matrices', 'bias': 'biases', 'factor': 'factors'}[kind] }/{index}"
    if root == "disc":
        where, leaf = rest[0], rest[-1]
        if where == "out":
            return f"disc/layer_with_weights-{num_blocks + 1}/layer_with_weights-0/{leaf}"
        leaf = {"bias": "layer/bias"}.get(leaf, leaf)
        if where == "latent":
            return f"disc/layer_with_weights-{num_blocks - 1}/layer_with_weights-0/{leaf}"
        n = int(where.lstrip("downup")) + (num_blocks // 2 if where.startswith("up") else 0)
        return f"disc/layer_with_weights-{n + (n == num_blocks - 1)}/{rest[1]}/layer_with_weights-0/{leaf}"
    layer, leaf = rest[1:]
    return f"{root}/{rest[0]}/transform/layer_with_weights-{layer[6:]}/_{leaf}_parameter"


def variables_of(*modules: nn.Module, prefix: str = "model/") -> Arrays:
    """Our parameters with the names of a checkpoint of the reference, and its other variables."""
    blocks = next((2 * len(m.config.down) for m in modules if isinstance(m, Discriminator)), 12)
    found = {prefix + object_key(path, blocks): array for path, array in arrays_of(*modules).items()}
    for key in list(found):
        if key.endswith("/g"):
            base = key.removesuffix("/g")
            found[f"{base}/_naked_clone_layer/bias"] = np.zeros(3, np.float32)
            found[f"{base}/initialized"] = np.array(True)
    return found | {
        f"{prefix}loss/total": np.zeros((), np.float32),
        f"{prefix}optimizer/_variables/1": np.zeros((2, 2), np.float32),
        "save_counter": np.array(7),
    }
