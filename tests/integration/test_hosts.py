"""Two worker nodes and a head as three hosts: data of each rank, sums of gradients, metrics in MLflow."""

import json
from pathlib import Path

import pytest
import torch

from egic.artifact import digest, load
from jobs.config.presets import tiny
from jobs.data.shards import load_manifest
from jobs.data.stream import TrainingSequence, local_stream, permutation, validation_batches
from jobs.tracking import model_registry, store
from jobs.training import loop
from tests.integration import hosts
from tests.local_session import LocalSession, small

pytestmark = [
    pytest.mark.ray,
    pytest.mark.faults,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(reason := hosts.why_not()), reason=reason or "-"),
]
STEPS = 6
RHYTHM = {"steps": STEPS, "last_steps": 0, "batch": 4, "log_every": 1, "checkpoint_every": 3, "val_samples": 4}
STAGES = ("segmentation", "mse-codec", "gan", "orp")


def flags(stage: str, values: dict) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{stage}.{name.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Prepared shards of a few drawn scenes: epochs of 10 end in the middle of a batch."""
    return hosts.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cluster(short_folder):
    with hosts.cluster(short_folder) as made:
        yield made


def submit(head: hosts.Host, folder: Path, script: str, *args: object) -> str:
    """`ray job submit` of a recorded script with two workers, as in the README; returns its log."""
    runtime_env = json.dumps({"env_vars": {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}})
    job = ["python", "tests/integration/recorded.py", script, "tiny", "--output", folder, "--compute.workers", 2, *args]
    done = head.run(
        ["ray", "job", "submit", "--address", f"http://{head.address}:{hosts.JOBS_PORT}", "--working-dir", ".",
         "--runtime-env-json", runtime_env, "--", *job]
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    return done.stdout


def seen(folder: Path, stage: str = "mse-codec") -> list[list[dict]]:
    """The batches of each rank."""
    files = sorted(folder.glob(f"seen-{stage}-*.jsonl"))
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def where(ranks: list[list[dict]]) -> list[list[str]]:
    """The hosts that each rank ran on, whichever rank was on which."""
    return sorted(sorted({batch["host"] for batch in rank}) for rank in ranks)


def histories(folder: Path, run_id: str, monkeypatch) -> dict[str, list[int]]:
    """The steps at which MLflow has each metric of a run."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    client = store.client()
    names = client.get_run(run_id).data.metrics
    return {name: [point.step for point in client.get_metric_history(run_id, name)] for name in names}


@pytest.fixture(scope="module")
def trained(cluster, data, tmp_path_factory) -> Path:
    """The folder of a run that trained the MSE codec with two workers, as a submitted job with the cluster's token."""
    folder = tmp_path_factory.mktemp("trained")
    submit(cluster[0], folder, "jobs/mse_codec.py", "--data", data, *flags("mse-codec", RHYTHM))
    return folder


def test_each_worker_node_runs_one_worker(trained):
    assert where(seen(trained)) == [["host2"], ["host3"]]


def test_the_ranks_together_read_every_position_once(trained, data):
    ranks = seen(trained)
    num_samples, seed = load_manifest(data / "train").num_samples, tiny().seed
    for step, batches in enumerate(zip(*ranks, strict=True)):
        pairs = [pair for b in batches for pair in zip(b["position"], b["sample"], strict=True)]
        positions = range(4 * step, 4 * step + 4)
        order = [int(permutation(seed, p // num_samples, num_samples)[p % num_samples]) for p in positions]
        assert sorted(pairs) == list(zip(positions, order, strict=True))
    assert [len(rank) for rank in ranks] == [STEPS, STEPS]


class OneProcess(LocalSession):
    """The same data in one process, without Ray."""

    def __init__(self, folder: Path, data: Path):
        super().__init__(folder)
        self.train, self.val = load_manifest(data / "train"), load_manifest(data / "val")

    def stream(self, config, first_step, settings):
        return local_stream(
            TrainingSequence(
                manifest=self.train, crop=config.crop, seed=config.seed, global_batch=settings.batch,
                first_step=first_step, last_step=settings.steps,
            )
        )  # fmt: skip

    def val_batches(self, config, settings):
        return validation_batches(self.val, config.crop, settings.val_samples, settings.batch)


def test_two_nodes_train_the_same_model_as_one_process(trained, data, tmp_path, monkeypatch, one_thread):
    loop.train("mse-codec", small("mse-codec", **RHYTHM), {}, OneProcess(tmp_path / "one", data), {})
    alone = load(tmp_path / "one" / f"step_{STEPS:06d}" / "artifact", "codec")["codec"].state_dict()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{trained}/mlflow.db")
    folder = model_registry.fetch("models:/egic-mse-codec@latest", tmp_path / "fetched")
    shared = load(folder, "codec")["codec"].state_dict()
    assert alone.keys() == shared.keys()
    for name, weight in alone.items():
        # Another order of sums moves weights by 8e-7 at most. A key's bias has no gradient but rounding, which Adam
        # scales up to a few 1e-5; a step is 5e-4, so a sum in place of a mean, or other data, is far outside.
        atol = 1e-4 if name.endswith("qkv.bias") else 1e-5
        torch.testing.assert_close(shared[name], weight, rtol=0, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


def test_curves_have_no_gap_and_the_artifact_has_its_digest(trained, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{trained}/mlflow.db")
    artifact = model_registry.resolve("models:/egic-mse-codec@best")
    steps = histories(trained, artifact.run_id, monkeypatch)
    assert {name for name in steps if name.startswith("train/")} >= {"train/loss", "train/bpp", "train/lr"}
    for name, at in steps.items():
        assert at == ([3, 6] if name.startswith("val/") else list(range(1, STEPS + 1))), name
    folder = model_registry.fetch("models:/egic-mse-codec@best", tmp_path / "fetched")
    assert digest(folder) == artifact.sha256
    saved = sorted(json.loads(p.read_text())["step"] for p in trained.glob("checkpoints/mse-codec-*/*/meta.json"))
    assert saved == [3, 6]


@pytest.mark.faults  # takes minutes
def test_the_whole_pipeline_runs_on_two_nodes(cluster, data, tmp_path):
    few = [word for stage in STAGES for word in flags(stage, {"steps": 4, "val_samples": 4})]
    few += flags("gan", {"warmup_steps": 2, "last_steps": 0}) + flags("evaluate", {"max_pictures": 2})
    few += flags("mse-codec", {"last_steps": 0}) + flags("orp", {"last_steps": 0})
    submit(cluster[0], tmp_path, "pipelines/full.py", "--data", data, *few)
    rows = json.loads((tmp_path / "summary.json").read_text())["stages"]
    assert [r["stage"] for r in rows] == [*STAGES, "evaluate"]
    for stage in STAGES:
        ranks = seen(tmp_path, stage)
        assert where(ranks) == [["host2"], ["host3"]]
        assert sorted(p for rank in ranks for b in rank for p in b["position"]) == list(range(16))
