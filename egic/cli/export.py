"""`egic export`: an artifact with a model card, in the layout of a model repository on the Hugging Face hub.

Weights and config are copied byte for byte, so that the folder keeps its digest and `egic.load` reads it; with --half
the weights are rounded to float16. Paths of this machine are left out of provenance.json.
"""

import json
import math
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from egic import artifact
from egic.errors import UserError

_WHAT = {
    "codec": "g_a, h_a, factorized prior, h_s, ChARM, g_s",
    "orp": "residual head: alpha between most faithful (0) and most realistic (1), from one file",
    "discriminator": "OASIS-C, used in training only",
}
_METRICS = {"psnr_db": "PSNR (dB)", "bpp": "bpp", "lpips": "LPIPS", "miou": "mIoU", "mse255": "MSE (0..255)"}
_CODING = """
```python
import egic
from huggingface_hub import snapshot_download
from PIL import Image

model = egic.load(snapshot_download("USER/NAME"))  # or the path of this folder
data = model.compress(Image.open("photo.png"))  # the bytes of an .egic file
picture = model.decompress(data)  # uint8 (H, W, 3){alpha}
```

On the command line: `egic compress photo.png -m FOLDER`, `egic decompress photo.egic -m FOLDER`. A file decodes with
the model that made it, and with others of the same entropy model.
"""
_LABELLING = """
```python
from egic import artifact
from huggingface_hub import snapshot_download

discriminator = artifact.load(snapshot_download("USER/NAME"), "discriminator")["discriminator"]
```
"""


def card(parts: Mapping[str, Any], provenance: Mapping, digest: str, licence: str) -> str:
    """README.md of a model repository: YAML front matter, components, use, validation metrics and origin."""
    codes = "codec" in parts
    tags = ["egic", "image-compression", "learned-image-compression"] if codes else ["egic", "semantic-segmentation"]
    alpha = "; alpha=0 is the most faithful, 1 the most realistic one" if "orp" in parts else ""
    facts = [(key, provenance.get(key)) for key in ("source", "steps", "commit")]
    lines = ["---", "library_name: egic", f"license: {licence}", "tags:"]
    lines += [*(f"- {tag}" for tag in (*tags, "arxiv:2309.03244")), "---", ""]
    lines += [f"# EGIC: {provenance.get('stage', 'model')}", ""]
    lines += [
        "EGIC ([arXiv 2309.03244](https://arxiv.org/abs/2309.03244)) is a generative image codec for low rates.",
        "",
    ]
    lines += ["| component | what | parameters |", "|---|---|---|"]
    lines += [f"| {n} | {_WHAT[n]} | {sum(p.numel() for p in part.parameters()):,} |" for n, part in parts.items()]
    lines += ["", "## Use", (_CODING.replace("{alpha}", alpha) if codes else _LABELLING), *_measured(provenance)]
    lines += ["## Origin", "", *(f"- {key}: {value}" for key, value in facts if value)]
    lines += [f"- sha256 of weights and config: `{digest}`", "- everything else: `provenance.json`", ""]
    return "\n".join(lines)


def _measured(provenance: Mapping) -> list[str]:
    """The lines of the section with the stage's validation metrics; [] if provenance has none."""
    found = {
        name.removeprefix("val/"): value
        for name, value in (provenance.get("metrics") or {}).items()
        if name.startswith("val/") and isinstance(value, int | float) and math.isfinite(value)
    }
    if not found:
        return []
    rows = [f"| {_METRICS.get(name, name)} | {value:.4g} |" for name, value in found.items()]
    where = (
        "On training-sized crops of the stage's validation data, at the end of training; bpp is the model's estimate."
    )
    return ["## Validation", "", where, "", "| metric | value |", "|---|---|", *rows, ""]


def without_paths(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance, with parents that were local folders named by their digest alone."""
    parents = provenance.get("parents") or {}
    public = {name: parent if parent.get("run_id") else {**parent, "uri": ""} for name, parent in parents.items()}
    return dict(provenance) | ({"parents": public} if parents else {})


def _provenance(record: Path) -> dict:
    try:
        found = json.loads(record.read_text())
    except ValueError as error:
        raise UserError(f"{record} is not JSON ({error}); copy the artifact again") from error
    if not isinstance(found, dict):
        raise UserError(f"{record} is not a JSON object; copy the artifact again")
    return found


def run(folder: Path, output: Path, licence: str, half: bool = False) -> list[str]:
    """Copy the artifact `folder` to `output` with a model card; returns lines to print. Raises UserError.

    half: round the weights to float16, which halves the files. The rounded model has another identity: it cannot decode
    files of the original, and the original cannot decode its files.
    """
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", licence):
        raise UserError(f"--license must be an identifier such as apache-2.0 or cc-by-4.0, got {licence!r}")
    parts = artifact.load(folder)  # raises for a damaged artifact
    record = folder / "provenance.json"
    provenance = without_paths(_provenance(record)) if record.is_file() else {}
    digest = artifact.digest(folder)
    aside = output.with_name(f".{output.name}.{os.getpid()}")
    aside.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(aside, ignore_errors=True)  # of a killed process that had the same number
    try:
        if half:
            networks = cast(Mapping[str, nn.Module], parts)
            digest = artifact.save(aside, networks, provenance | {"rounded_to_float16_from": digest}, torch.float16)
        else:
            aside.mkdir()
            for path in sorted([*folder.glob("*.safetensors"), folder / "config.json"]):
                shutil.copyfile(path, aside / path.name)
            if record.is_file():
                (aside / record.name).write_text(json.dumps(provenance, indent=2) + "\n")
        (aside / "README.md").write_text(card(parts, provenance, digest, licence))
        if artifact.digest(aside) != digest:
            raise UserError(f"{folder} changed while it was copied; try again")
        if output.exists():
            shutil.rmtree(output)
        aside.rename(output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return [f"{' + '.join(parts)}, sha256 {digest[:12]}", str(output)]
