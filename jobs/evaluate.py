"""Stage: every picture to a real file and back, spread over the cluster by Ray Data; one row per picture and alpha."""

import dataclasses
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import ray.data

from egic import metrics, panels
from egic.config import parse_preset
from egic.errors import quiet, run_main
from jobs import registry, tracking
from jobs.cluster import interruptible, start_ray
from jobs.config import Config, EvaluateConfig
from jobs.prepare import open_data
from jobs.presets import PRESETS, extended
from jobs.registry import Artifact
from jobs.run import local_copy
from jobs.shards import Manifest, read_index, read_samples
from jobs.stage import EVALUATE as NAME
from jobs.stage import code_digest, stage_key

log = logging.getLogger(__name__)

NUM_SHOWN = 3
"""Pictures in the sheet to look at."""


class Coder:
    """Codes pictures in one process of the cluster, with the model loaded once."""

    def __init__(self, files: ray.ObjectRef, evaluate: EvaluateConfig, manifest: Manifest, use_gpu: bool):
        from egic.model import load

        with tempfile.TemporaryDirectory() as folder:
            for name, content in ray.get(files).items():
                Path(folder, name).write_bytes(content)
            self.model = load(folder, "cuda" if use_gpu else "cpu")
        self.evaluate, self.manifest = evaluate, manifest

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list]:
        rows = [row for sample in batch["id"] for row in self.rows(int(sample))]
        return {name: [row[name] for row in rows] for name in rows[0]}

    def rows(self, sample: int) -> Iterator[dict]:
        """Write one validation picture to a file, read it back at every alpha, measure."""
        import torch

        from egic.images import decode_jpeg
        from egic.model import as_bytes
        from egic.orp import blend

        stored = next(iter(read_samples(self.manifest, [sample])))
        name = read_index(self.manifest).name_and_shard(self.manifest, sample)[0]
        picture = decode_jpeg(stored.jpeg)
        height, width, _ = picture.shape
        with tempfile.NamedTemporaryFile(suffix=".egic") as file:
            start = time.perf_counter()
            file.write(self.model.compress(picture))
            file.flush()
            encode_s, start = time.perf_counter() - start, time.perf_counter()
            content = Path(file.name).read_bytes()
            x_gan, x_mse = self.model.decode_pictures(content)
            decode_s = time.perf_counter() - start
        original = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None]
        for alpha in self.evaluate.alphas if x_mse is not None else (1.0,):
            x_hat = as_bytes(x_gan if x_mse is None else blend(x_gan, x_mse, alpha))
            decoded = torch.from_numpy(x_hat).permute(2, 0, 1)[None]
            yield {
                "id": sample, "name": name, "height": height, "width": width, "alpha": alpha, "bytes": len(content),
                "bpp": metrics.bpp(len(content), height, width),
                "psnr_db": metrics.psnr_db(decoded, original).item(), "encode_s": encode_s, "decode_s": decode_s,
                "picture": panels.png(x_hat) if sample < NUM_SHOWN else b"",
                "original": panels.png(picture) if sample < NUM_SHOWN else b"",
            }  # fmt: skip


def code_pictures(artifact_folder: Path, config: Config, manifest: Manifest) -> pa.Table:
    """Rows of `Coder` for the validation pictures, ordered by picture and alpha."""
    compute = config.compute
    files = ray.put({p.name: p.read_bytes() for p in artifact_folder.iterdir() if p.stem in ("codec", "orp", "config")})
    num = min(config.evaluate.max_pictures, manifest.num_samples)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    dataset = ray.data.range(num, override_num_blocks=max(1, min(num, 4 * compute.workers))).map_batches(
        Coder, fn_constructor_args=(files, config.evaluate, manifest, compute.use_gpu), batch_size=4,
        compute=ray.data.ActorPoolStrategy(size=compute.workers), num_cpus=compute.cpus_per_worker,
        num_gpus=1 if compute.use_gpu else None,
    )  # fmt: skip
    rows = sorted(dataset.take_all(), key=lambda row: (row["id"], row["alpha"]))
    return pa.Table.from_pylist(rows)


def sheet(table: pa.Table) -> bytes:
    """PNG: one line per shown picture, the original and every alpha, titled with PSNR and bpp."""
    rows, titles = [], []
    shown = [row for row in table.to_pylist() if row["original"]]
    for sample in sorted({row["id"] for row in shown}):
        of_sample = [row for row in shown if row["id"] == sample]
        rows.append([panels.from_png(of_sample[0]["original"])] + [panels.from_png(r["picture"]) for r in of_sample])
        titles.append(
            ["original", *(f"alpha {r['alpha']:g}  {r['psnr_db']:.2f} dB  {r['bpp']:.3f} bpp" for r in of_sample)]
        )
    return panels.png(panels.panel(rows, titles))


def summarise(table: pa.Table) -> dict[str, float]:
    """Means over pictures: bpp, seconds, and PSNR at every alpha."""
    rows = table.to_pylist()
    found = {name: float(np.mean([r[name] for r in rows])) for name in ("bpp", "encode_s", "decode_s")}
    for alpha in sorted({r["alpha"] for r in rows}):
        found[f"psnr_db_alpha_{alpha:g}"] = float(np.mean([r["psnr_db"] for r in rows if r["alpha"] == alpha]))
    return {"num_pictures": len({r["id"] for r in rows})} | found


def run(config: Config, artifact: Artifact, manifest: Manifest, *, parent_run: str | None = None) -> dict:
    """Evaluate an artifact on validation pictures, or take what an earlier run with the same key found.

    Writes rows.parquet, sheet.png and summary.json to <output>/evaluate/<key>/ and logs them; returns the summary with
    `folder`, `run_id` and `reused`.
    """
    facts = {"stage": NAME, "config": dataclasses.asdict(config.evaluate), "code": code_digest(NAME)}
    facts |= {"parents": {"model": artifact.sha256}, "data": manifest.digest}
    key = stage_key(facts)
    folder = Path(config.output) / NAME / key
    done = [r for r in tracking.runs_of(NAME, key, experiment=config.experiment) if r.info.status == "FINISHED"]
    if done and (folder / "summary.json").is_file():
        if parent_run:
            tracking.reuse_stage(parent_run, NAME, done[0].info.run_id)
        found = json.loads((folder / "summary.json").read_text())
        return found | {"folder": folder, "run_id": done[0].info.run_id, "reused": True}
    run_id = tracking.start_stage(parent_run, NAME, key, facts, {}, experiment=config.experiment)
    with tracking.ending(run_id):
        registry.log_parents(run_id, {"model": artifact})
        start = time.perf_counter()
        local = local_copy(artifact, Path(config.output))
        table = code_pictures(local, config, manifest)
        found = summarise(table) | {"time_s": time.perf_counter() - start}
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.drop_columns(["picture", "original"]), folder / "rows.parquet")
        (folder / "sheet.png").write_bytes(sheet(table))
        aside = folder / f".summary.{os.getpid()}"
        aside.write_text(json.dumps(found, indent=2) + "\n")
        aside.rename(folder / "summary.json")
        tracking.log_folder(run_id, folder, {f"val/{k}": v for k, v in found.items()})
    return found | {"folder": folder, "run_id": run_id, "reused": False}


@dataclasses.dataclass(frozen=True, kw_only=True)
class AloneConfig(Config):
    """A preset's configuration, and the model to evaluate."""

    model: str = ""
    """Artifact with a codec: a folder, models:/egic-orp@best, models:/name/3 or runs:/ID."""


def main(argv: list[str] | None = None) -> None:
    """`python -m jobs.evaluate PRESET --model REF [--data FOLDER]`: validation pictures through real files."""
    quiet("jobs")
    presets = {name: extended(make, AloneConfig) for name, make in PRESETS.items()}
    config = parse_preset(presets, argv, prog="python -m jobs.evaluate")
    raise SystemExit(run_main(lambda: run_alone(config)))


def run_alone(config: AloneConfig) -> None:
    """Evaluate `config.model` and print the means and where the rows are."""
    if not config.model:
        raise ValueError("no model to evaluate; give --model models:/egic-orp@best, or a folder")
    artifact = registry.resolve(config.model)
    manifest = open_data(config.data, Path(config.output))["val"]
    start_ray()
    with interruptible():
        found = run(config, artifact, manifest)
    for name, value in found.items():
        if isinstance(value, float):
            print(f"{name:<20} {value:.4g}")
    print(found["folder"].absolute())


if __name__ == "__main__":
    main()
