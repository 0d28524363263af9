"""Two pipelines at the same time in one storage, and a group of workers that shrinks and grows."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from jobs.tracking import store
from tests.faults.injected import ARGS, EVERY, ROOT, STEPS, Head, Run, checkpoints, curves, head, spoken_steps, step_of

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(1200)]
FEW = (
    "--segmentation.steps 6 --mse-codec.steps 6 --mse-codec.last-steps 1 --gan.steps 4 --gan.warmup-steps 2 "
    "--gan.last-steps 1 --orp.steps 4 --orp.last-steps 1 --evaluate.max-pictures 2"
).split()


def test_two_pipelines_share_their_stages(tmp_path, monkeypatch):
    """Every stage is trained once: the other pipeline waits for it and uses it."""
    full = f"{ROOT}/pipelines/full.py tiny"
    with Run(tmp_path, *FEW, command=full) as one, Run(tmp_path, *FEW, command=full) as two:
        assert one.end(900) == 0, one.text()
        assert two.end(900) == 0, two.text()
        texts = one.text() + two.text()
    assert texts.count("another run works on it, waiting") >= 1
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    client = store.client()
    runs = client.search_runs([store.experiment_id()], "tags.`egic.kind` = 'stage'")
    stages = sorted(run.data.tags["egic.stage"] for run in runs)
    assert stages == ["evaluate", "gan", "mse-codec", "orp", "segmentation"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    rows = json.loads((tmp_path / "outputs" / "summary.json").read_text())["stages"]
    for row in rows:
        assert texts.count(row["run_id"]) >= 2, "both tables name the same runs"
    assert not list(tmp_path.glob("outputs/checkpoints/*/lease.json"))


@contextmanager
def node(folder: Path, ray: Head, name: str, **env: str):
    """One more Ray node on this machine, with 2 CPUs; `kill` ends it as a lost machine would."""
    command = [
        str(Path(sys.executable).with_name("ray")), "start", "--block", f"--address={ray.address}",
        "--num-cpus=2", "--object-store-memory=100000000", "--node-ip-address=127.0.0.1", "--disable-usage-stats",
        f"--node-name={name}", "--min-worker-port=0", "--max-worker-port=0",
    ]  # fmt: skip
    with (folder / f"{name}.txt").open("w") as log:
        process = subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": str(ROOT)} | ray.env | env, stdout=log, stderr=subprocess.STDOUT
        )

    def kill() -> None:
        members = [process, *psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []
        for member in members:
            try:
                member.kill()
            except psutil.NoSuchProcess:
                pass
        process.wait()

    try:
        yield kill
    finally:
        kill()


def test_a_group_shrinks_when_a_node_is_lost_and_grows_when_one_joins(tmp_path, monkeypatch):
    steps = 400
    args = [*ARGS, "--segmentation.steps", str(steps), "--segmentation.batch", "8", "--workers", "1:2"]
    args += ["--compute.cpus-per-worker", "1.5", "--compute.data-cpus", "0.25"]
    with head(tmp_path) as ray, Run(tmp_path, *args, **ray.env) as run:

        def groups() -> list[str]:
            return [
                line.partition("segmentation: ")[2] for line in run.text().splitlines() if "share the batch" in line
            ]

        with node(tmp_path, ray, "second") as kill:
            run.wait_until(lambda: groups()[-1:] == ["2 workers share the batch"], "a group of two", 300)
            run.wait_for_checkpoint(run.committed() + EVERY, 300)
            kill()
            run.wait_until(lambda: groups()[-1:] == ["1 workers share the batch"], "a group of one", 300)
            run.wait_for_checkpoint(run.committed() + EVERY, 300)
        with node(tmp_path, ray, "third"):
            run.wait_until(lambda: groups()[-1:] == ["2 workers share the batch"], "a group of two again", 300)
            assert run.end(400) == 0, run.text()
    told, statuses = curves(tmp_path, monkeypatch)  # checkpoints before the group grew have additional rows
    assert statuses == ["FINISHED"] and told == sorted(set(told)) and set(told) >= set(range(5, steps + 1, 5))


@pytest.fixture(scope="module")
def skewed(tmp_path_factory):
    """Environment of processes whose clock is some hours ahead."""
    if not (compiler := shutil.which("cc")):
        pytest.skip("needs a C compiler")
    library = tmp_path_factory.mktemp("clock") / "skewed_clock.so"
    source = Path(__file__).parent / "inject" / "skewed_clock.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
    return lambda hours: {"LD_PRELOAD": str(library), "SKEW_S": str(3600 * hours)}


def test_the_clocks_of_the_nodes_differ(tmp_path, monkeypatch, skewed):
    """Clocks differ by hours, so that newer checkpoints have older names when the job is submitted again."""
    args = [*ARGS, "--workers", "2", "--compute.cpus-per-worker", "1.5", "--compute.data-cpus", "0.25"]
    args += ["--compute.wait-s", "60"]  # the second node may join later than the run
    with head(tmp_path, **skewed(3)) as ray, node(tmp_path, ray, "second", **skewed(2)):
        with Run(tmp_path, *args, **ray.env) as run:
            run.wait_for_checkpoint(2 * EVERY, 300)
            run.kill_hard()
            assert (reached := run.committed()) < STEPS
    with head(tmp_path, **skewed(-3)) as ray, node(tmp_path, ray, "second", **skewed(-2)):
        with Run(tmp_path, *args, **ray.env) as run:
            assert run.end(400) == 0, run.text()
            assert min(spoken_steps(run.text())) > reached
    kept = checkpoints(tmp_path)
    assert [step_of(p) for p in kept] == [
        STEPS - 2 * EVERY,
        STEPS - EVERY,
        STEPS,
    ]
    assert kept != sorted(kept), "older names"
    assert curves(tmp_path, monkeypatch) == (list(range(5, STEPS + 1, 5)), ["FINISHED"])
