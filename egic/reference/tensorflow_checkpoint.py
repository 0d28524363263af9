"""`egic import-reference`: a TensorFlow checkpoint of the reference -> our artifact.

TensorFlow names a variable by the path through the objects that contain it, such as
`model/analysis_transform/layer_with_weights-1/blocks/0/norm1/gamma`. The import has three steps: translate these names
to the paths of egic/reference/weights.py, infer the configs from the shapes of the arrays, copy the arrays.
Unused variables are listed; a missing variable is an error. Only `read` needs TensorFlow, an optional extra.
"""

import hashlib
import os
import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from statistics import mode

import numpy as np
from torch import nn

from egic import artifact
from egic.errors import UserError
from egic.networks.codec import Codec, CodecConfig
from egic.networks.discriminator import Discriminator, DiscriminatorConfig
from egic.networks.orp import ResidualHead
from egic.reference.weights import load_reference_weights, reference_paths

Arrays = Mapping[str, np.ndarray]

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
_GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_LAYER = r"layer_with_weights-(\d+)"
_TRANSFORM = re.compile(
    rf"(analysis|synthesis|hyper_analysis|hyper_synthesis)(?:_mean_scale)?_transform/(cond_model/)?{_LAYER}/(.+)"
)
_SLICE = re.compile(rf"(cc_(?:mean|scale)_transforms/\d+)/transform/{_LAYER}/_(kernel|bias)_parameter")
_PRIOR = re.compile(r"hyperprior/_base/_(matri|bias|factor)(?:ces|es|s)/(\d+)")
_WEIGHT_NORM = re.compile(rf"{_LAYER}/(?:(conv1|conv2|conv_s)/)?layer_with_weights-0/(?:(g|v)|layer/(bias))")
_LOGITS = re.compile(rf"{_LAYER}/layer_with_weights-0/(kernel|bias)")


def reference_path(key: str) -> str | None:
    """An object path of the codec or its ORP head -> the reference path; None for other paths.

    A path with this form may still name a variable that no network has.
    """
    if m := _TRANSFORM.fullmatch(key):
        kind, orp, index, rest = m.groups()
        root = "orp" if orp else f"{kind}_transform"
        rest = re.sub(r"^blocks/(\d+)/", r"block\1/", rest)
        rest = re.sub(r"/mlp/layer_with_weights-([01])/", lambda m: f"/mlp/fc{int(m[1]) + 1}/", rest)
        if not kind.endswith("analysis"):
            return f"{root}/stage{index}/{rest}"
        return f"{root}/patch_embed/{rest}" if index == "0" else f"{root}/stage{int(index) - 1}/{rest}"
    if m := _SLICE.fullmatch(key):
        return f"{m[1]}/layer_{m[2]}/{m[3]}"
    if m := _PRIOR.fullmatch(key):
        return f"hyperprior/{'matrix' if m[1] == 'matri' else m[1]}_{m[2]}"
    return None


def _discriminator_paths(keys: Iterable[str]) -> dict[str, str]:
    """Object paths below a discriminator -> reference paths.

    Keras numbers the residual blocks and the latent branch in one sequence. Of the blocks in this order, the first half
    are down blocks, the second half up blocks.
    """
    keys = set(keys)
    found = {key: m for key in keys if (m := _WEIGHT_NORM.fullmatch(key))}
    blocks = sorted({int(m[1]) for m in found.values() if m[2]})
    half = len(blocks) // 2
    names = {n: f"down{i}" if i < half else f"up{i - half}" for i, n in enumerate(blocks)}
    paths = {}
    for key, m in found.items():
        where = f"{names[int(m[1])]}/{m[2]}" if m[2] else "latent"
        paths[key] = f"disc/{where}/{m[3] or m[4]}"
    return paths | {key: f"disc/out/{m[2]}" for key in keys if (m := _LOGITS.fullmatch(key))}


def keys_by_path(keys: Iterable[str]) -> dict[str, str]:
    """Reference path -> checkpoint key or object path; keys of other variables are ignored.

    Raises UserError if two keys name the same variable.
    """
    short = {key: key.removesuffix(_VALUE).removeprefix("model/") for key in keys}
    paths = {key: reference_path(name) for key, name in short.items()}
    discriminator: dict[str, str] = {}
    for prefix in ("disc/", ""):  # part of the codec's model, or saved alone
        below = _discriminator_paths(n.removeprefix(prefix) for n in short.values() if n.startswith(prefix))
        discriminator |= {prefix + name: path for name, path in below.items()} if not discriminator else {}
    found: dict[str, str] = {}
    for key, path in paths.items():
        path = path or discriminator.get(short[key])
        if path and found.setdefault(path, key) != key:
            raise UserError(f"{path} is stored twice, as {found[path]} and {key}")
    return found


def spatial_kernels(variables: Arrays) -> dict[str, np.ndarray]:
    """Convert ChARM's kernels from real DFTs (`.../real`, `.../imag`, tfc's default) to kernels (h, w, in, out).

    The reference stores plain kernels, but a variant of it may not. tfc.RDFTParameter is an orthonormal DFT over height
    and width. An odd and an even width have the same number of frequencies, so the kernel is assumed to be square.
    """
    found = dict(variables)
    for key in variables:
        m = re.fullmatch(rf"(.+/_kernel_parameter)/real((?:{_VALUE})?)", key)
        if m is None or (imag := f"{m[1]}/imag{m[2]}") not in variables:
            continue
        spectrum = found.pop(key).astype(np.float64) + 1j * found.pop(imag)
        side = spectrum.shape[-2]
        kernel = np.fft.irfft2(spectrum * side, s=(side, side)).transpose(2, 3, 0, 1)
        found[m[1] + m[2]] = kernel.astype(np.float32)
    return found


def _sizes(arrays: Arrays, pattern: str, axis: int) -> dict[int, int]:
    """Number in the path -> most frequent size along `axis`, so that one misshaped array does not change the config."""
    found: dict[int, list[int]] = {}
    for path, array in arrays.items():
        if (m := re.fullmatch(pattern, path)) and array.ndim:
            found.setdefault(int(m[1]), []).append(array.shape[axis])
    return {number: mode(sizes) for number, sizes in found.items()}


def _transforms(arrays: Arrays, prefix: str, num_stages: int) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """(dims, depths, window) of an analysis transform and the synthesis transform that mirrors it."""
    down, up = rf"{prefix}analysis_transform/stage", rf"{prefix}synthesis_transform/stage"
    dims: dict[int, int] = {}
    blocks: Counter[int] = Counter()
    for root, stage_of in ((up, lambda i: num_stages - 1 - i), (down, lambda i: i)):
        norms = _sizes(arrays, rf"{root}(\d+)/block\d+/norm\d/(?:gamma|beta)", 0)
        dims |= {stage_of(i): size for i, size in norms.items()}
        for path in arrays:
            if m := re.match(rf"{root}(\d+)/block(\d+)/", path):
                stage = stage_of(int(m[1]))
                blocks[stage] = max(blocks[stage], int(m[2]) + 1)
    tables = rf"(?:{down}|{up})\d+/block\d+/attn/relative_position_bias_table"
    rows = mode(array.shape[0] for path, array in arrays.items() if re.fullmatch(tables, path))
    stages = range(num_stages)
    return tuple(dims[i] for i in stages), tuple(blocks[i] for i in stages), (round(rows**0.5) + 1) // 2


def codec_config(arrays: Arrays) -> CodecConfig:
    """The codec's config from the arrays' shapes, or the paper's if they are incomplete. Raises UserError."""
    try:
        dims, depths, window = _transforms(arrays, "", 4)
        hyper_dims, hyper_depths, hyper_window = _transforms(arrays, "hyper_", 2)
        num_slices = 1 + max(_sizes(arrays, r"cc_(?:mean|scale)_transforms/(\d+)/.+", -1))
    except (KeyError, ValueError):  # no array of a stage, bias table or slice
        return CodecConfig()
    return CodecConfig(
        dims=dims, depths=depths, window=window, hyper_dims=hyper_dims, hyper_depths=hyper_depths,
        hyper_window=hyper_window, num_slices=num_slices,
    )  # fmt: skip


def discriminator_config(arrays: Arrays) -> DiscriminatorConfig:
    """As `codec_config`."""
    down, up = (_sizes(arrays, rf"disc/{way}(\d+)/conv[12]/(?:g|v|bias)", -1) for way in ("down", "up"))
    if len(down) != len(up) or len(down) < 2 or "disc/latent/v" not in arrays or "disc/out/bias" not in arrays:
        return DiscriminatorConfig()
    return DiscriminatorConfig(
        down=tuple(down[i] for i in sorted(down)),
        up=tuple(up[i] for i in sorted(up)),
        latent_channels=arrays["disc/latent/v"].shape[-2],
        num_categories=arrays["disc/out/bias"].shape[-1] - 2,
    )


def components(variables: Arrays) -> tuple[dict[str, nn.Module], list[str]]:
    """Variables by key -> (the components that they contain: codec, orp, discriminator; unused keys).

    Raises UserError naming the variables that are missing, misshaped or not finite.
    """
    variables = spatial_kernels(variables)
    keys = keys_by_path(variables)
    arrays = {path: variables[key] for path, key in keys.items()}
    roots = Counter(path.split("/")[0] for path in arrays)
    found: dict[str, nn.Module] = {}
    if roots.keys() - {"orp", "disc"}:
        found["codec"] = Codec(codec_config(arrays))
    if "orp" in roots:
        if "codec" not in found:
            raise UserError("an ORP head without a codec; name the checkpoint of the whole model")
        found["orp"] = ResidualHead(codec_config(arrays))
    if "disc" in roots:
        found["discriminator"] = Discriminator(discriminator_config(arrays))
    if not found:
        raise UserError(
            "the checkpoint has no variables of the reference, only " + (_some(sorted(variables)) or "none")
        )
    wanted = {name: [path for _, path, _ in reference_paths(module)] for name, module in found.items()}
    for name, paths in wanted.items():
        if missing := [path for path in paths if path not in arrays]:
            raise UserError(f"the {name} lacks {_some(missing)}")
    if broken := [path for path in chain(*wanted.values()) if not np.isfinite(arrays[path]).all()]:
        raise UserError(f"values that are not finite in {_some(broken)}")
    for name, module in found.items():
        load_reference_weights(module.eval(), {path: arrays[path] for path in wanted[name]})
    return found, sorted(variables.keys() - {keys[path] for path in chain(*wanted.values())})


def _some(names: list[str], limit: int = 8) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def grouped(keys: Iterable[str]) -> list[str]:
    """The keys, where those that differ only in numbers are one entry with their count."""
    counts = Counter(re.sub(r"\d+", "*", key) for key in keys)
    return [name if count == 1 and "*" not in name else f"{name} ({count})" for name, count in sorted(counts.items())]


def find_prefix(where: Path) -> Path:
    """The checkpoint prefix (`.../ckpt-7`) of `source`: a prefix, one of its files, the backup folder of a training, or
    the folder of a SavedModel. Raises UserError."""
    if where.is_file() and (m := re.fullmatch(r"(.+)\.(?:index|data-\d{5}-of-\d{5})", where.name)):
        where = where.with_name(m[1])
    if where.with_name(where.name + ".index").is_file():
        return where
    if (where / "variables" / "variables.index").is_file():
        return where / "variables" / "variables"
    for folder in (where, where / "chief"):  # Keras' BackupAndRestore writes into chief/
        if (folder / "checkpoint").is_file():
            m = re.search(r'^model_checkpoint_path: "(.+)"$', (folder / "checkpoint").read_text(), re.MULTILINE)
            newest = folder / Path(m[1]).name if m else folder  # an absolute path may be that of another machine
            if newest.with_name(newest.name + ".index").is_file():
                return newest
    raise UserError(
        f"{where} is not a TensorFlow checkpoint; name its prefix (.../ckpt-7), the folder of a training's backup, "
        "or a SavedModel's"
    )


# Keras' lists of objects that have names as attributes, too; in a SavedModel, the shortest paths to many variables.
_LISTS = re.compile(
    r"layer-\d+|layers|variables|(non_)?trainable_variables|weights|_?metrics|keras_api|signatures|regularization_losses"
)


def object_paths(children: Mapping[int, Iterable[tuple[str, int]]]) -> dict[int, str]:
    """Node -> its shortest path of attribute names from node 0, without paths through Keras' lists."""
    paths, queue = {0: ""}, deque([0])
    while queue:
        node = queue.popleft()
        for name, child in children.get(node, ()):
            if child not in paths and not _LISTS.fullmatch(name):
                paths[child] = f"{paths[node]}/{name}".removeprefix("/")
                queue.append(child)
    return paths


def read(prefix: Path) -> dict[str, np.ndarray]:
    """All variables of a checkpoint by object path, or by key if they have none. Raises UserError."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # hide start-up messages on stderr; errors are raised anyway
    try:
        import tensorflow as tf
        from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph
    except ImportError as error:
        raise UserError(
            f"reading TensorFlow's checkpoints needs TensorFlow ({error}): pip install 'egic[import-reference]'"
        ) from error
    try:
        reader = tf.train.load_checkpoint(str(prefix))
        types = reader.get_variable_to_dtype_map()
        names = {}
        if _GRAPH in types:
            graph = TrackableObjectGraph.FromString(reader.get_tensor(_GRAPH))
            paths = object_paths(
                {i: [(c.local_name, c.node_id) for c in n.children] for i, n in enumerate(graph.nodes)}
            )
            names = {a.checkpoint_key: paths[i] for i, n in enumerate(graph.nodes) if i in paths for a in n.attributes}
        return {names.get(key, key): reader.get_tensor(key) for key in types if key != _GRAPH}
    except (tf.errors.OpError, RuntimeError, ValueError) as error:
        raise UserError(f"{prefix} cannot be read ({str(error).splitlines()[0]}); copy it again") from error


def stage_of(found: Mapping[str, nn.Module], wanted: str | None) -> str:
    """The stage that makes such components, which `--init-from` needs to know. Raises UserError."""
    if "orp" in found or "codec" not in found:
        stage = "orp" if "orp" in found else "segmentation"
    else:
        stage = wanted or "gan"
    if wanted not in (None, stage) or (stage == "mse-codec" and len(found) > 1):
        raise UserError(f"a checkpoint with {' + '.join(found)} is not a model of {wanted}; leave --stage out")
    return stage


def run(source: Path, output: Path, stage: str | None) -> list[str]:
    """Import `source` into the artifact folder `output`; returns lines to print. Raises UserError."""
    prefix = find_prefix(source)
    variables = read(prefix)
    try:
        found, unused = components(variables)
        stage = stage_of(found, stage)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    index = prefix.with_name(prefix.name + ".index").read_bytes()  # has the checksums of all arrays
    provenance = {
        "stage": stage,
        "source": f"{source.resolve().name}, a TensorFlow checkpoint of the EGIC reference",
        "source_index_sha256": hashlib.sha256(index).hexdigest(),
        "not_used": grouped(unused),
        "metrics": {},
    }
    digest = artifact.save(output, found, provenance)
    sizes = (f"{name} ({sum(p.numel() for p in m.parameters()):,} parameters)" for name, m in found.items())
    lines = [f"not used: {name}" for name in provenance["not_used"]]
    return [*lines, f"{stage}: {', '.join(sizes)}, sha256 {digest[:12]}", str(output.absolute())]
