"""A stage's artifact: `<component>.safetensors` (codec, orp, discriminator), config.json, provenance.json. No pickle.

A discriminator's frozen encoder is not stored: config.json names its weights by their digest (frozen_features).

The digest of an artifact is one sha256 over its weights and config.json. Later stages, the model registry and
provenance files identify an artifact by it.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TypedDict, cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from egic.errors import UserError
from egic.networks import frozen_features
from egic.networks.codec import Codec, CodecConfig
from egic.networks.discriminator import Discriminator, DiscriminatorConfig
from egic.networks.orp import ResidualHead

FORMAT = 1
_BUILD = {
    "codec": (Codec, CodecConfig),
    "orp": (ResidualHead, CodecConfig),
    "discriminator": (Discriminator, DiscriminatorConfig),
}


class Components(TypedDict, total=False):
    """Networks of an artifact by component."""

    codec: Codec
    orp: ResidualHead
    discriminator: Discriminator


def _config(data: object, where: str, kind: type):
    """The config dataclass `kind` from JSON. Raises UserError, naming `where`, for unknown keys and wrong types."""
    fields = {f.name: f.type for f in dataclasses.fields(kind)}
    if not isinstance(data, dict) or (unknown := data.keys() - fields.keys()):
        what = f"unknown keys {sorted(unknown)}" if isinstance(data, dict) else "not a JSON object"
        raise UserError(f"{where}: {what}; it was written by another version, or is damaged")
    for name, value in data.items():
        ok = (
            isinstance(value, list) and all(type(v) is int for v in value)
            if "tuple" in str(fields[name])
            else type(value) is (str if fields[name] in (str, "str") else int)
        )
        if not ok:
            raise UserError(f"{where}: {name} has the wrong type ({value!r})")
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items()})


def digest(folder: Path) -> str:
    """sha256 (hex) over the artifact's config.json and weight files, sorted by name; without provenance.json."""
    if not (Path(folder) / "config.json").is_file():
        raise UserError(f"{folder} is not an EGIC model: it has no config.json")
    total = hashlib.sha256()
    files = sorted([*Path(folder).glob("*.safetensors"), Path(folder) / "config.json"])
    for path in files:
        with open(path, "rb") as f:
            total.update(f"{path.name} {hashlib.file_digest(f, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def save(
    folder: Path,
    components: Mapping[str, nn.Module],
    provenance: Mapping[str, object],
    dtype: torch.dtype = torch.float32,
) -> str:
    """Write an artifact and return its digest. The folder is complete or absent: it is written aside, then renamed.

    components: networks by name (codec, orp, discriminator). dtype: of the stored weights; `load` converts to float32.
    """
    folder = Path(folder)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)  # of a killed process that had the same number, as in containers
    aside.mkdir(parents=True)
    try:
        config: dict[str, object] = {"format": FORMAT}
        for name, module in components.items():
            tensors = {k: v.detach().to("cpu", dtype).contiguous() for k, v in module.state_dict().items()}
            content = safetensors.torch.save(tensors, metadata={"component": name})
            (aside / f"{name}.safetensors").write_bytes(content)  # `save_file` lets only the owner read it
        codec, discriminator = components.get("codec"), components.get("discriminator")
        if isinstance(codec, Codec):
            config["codec"] = dataclasses.asdict(codec.config)
        if isinstance(discriminator, Discriminator):
            config["discriminator"] = discriminator.config.recorded()
        (aside / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (aside / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
        if folder.exists():
            shutil.rmtree(folder)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return digest(folder)


def read_config(folder: str | Path) -> dict[str, CodecConfig | DiscriminatorConfig]:
    """The configs of the artifact's components, by component. Raises UserError naming the folder and what is wrong."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise UserError(f"{folder} is not an EGIC model: it has no config.json")
    try:
        data = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise UserError(f"{path} is not JSON ({e}); the artifact is damaged") from e
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise UserError(f"{path}: this version reads format {FORMAT} only")
    found = {name: _config(data.pop(name), f"{path}: {name}", _BUILD[name][1]) for name in list(data) if name in _BUILD}
    if data:
        raise UserError(f"{path}: unknown keys {sorted(data)}; it was written by another version, or is damaged")
    if "codec" in found and (Path(folder) / "orp.safetensors").is_file():
        found["orp"] = found["codec"]
    return found


def load(folder: str | Path, *names: str, encoder: Mapping[str, Tensor] | None = None) -> Components:
    """Load the named components, or all of them without names, on the CPU and in eval mode.

    encoder: weights of the discriminator's frozen encoder, if it has one; None loads them by `frozen_features.find`.
    Raises UserError for a missing component and for weights that are missing, surplus, misshaped or unreadable.
    """
    configs = read_config(folder)
    if missing := [n for n in names if n not in configs]:
        raise UserError(f"{folder} has no {', '.join(missing)}; it holds {', '.join(configs)}")
    found = {
        name: _load(Path(folder) / f"{name}.safetensors", name, configs[name], encoder) for name in names or configs
    }
    return cast(Components, found)


def _load(
    path: Path, name: str, config: CodecConfig | DiscriminatorConfig, encoder: Mapping[str, Tensor] | None
) -> nn.Module:
    if isinstance(config, DiscriminatorConfig) and config.encoder:
        found = encoder or frozen_features.find(config.encoder, len(config.down))
        module: nn.Module = Discriminator(config, found)
    else:
        module = _BUILD[name][0](config)
    try:
        tensors = safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as e:
        raise UserError(f"{path} cannot be read ({e}); copy or download the artifact again") from e
    expected = module.state_dict()
    wrong = sorted(expected.keys() ^ tensors.keys())
    wrong += [k for k in expected.keys() & tensors.keys() if expected[k].shape != tensors[k].shape]
    if wrong:
        raise UserError(f"{path} does not fit its config.json: {', '.join(wrong[:3])} ({len(wrong)} in all)")
    module.load_state_dict(tensors)
    return module.eval()
