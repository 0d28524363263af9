"""Whole hosts that die or lose the network: the result equals an unbroken run, and MLflow has every step once."""

import ast
import json
import re
import time
from pathlib import Path

import psutil
import pytest

from jobs.tracking.store import client
from tests.integration import hosts

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.faults,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(reason := hosts.why_not()), reason=reason or "-"),
]
STEPS, EVERY, BATCH = 60, 10, 4
ARGS = (
    f"--mse-codec.steps {STEPS} --mse-codec.last-steps 0 --mse-codec.batch {BATCH} --mse-codec.log-every 2 "
    f"--mse-codec.checkpoint-every {EVERY} --mse-codec.val-samples 4 --compute.workers 2"
).split()


class Run:
    """A run of the MSE codec on two workers, with its driver on the head and its output in `folder`."""

    def __init__(self, head: hosts.Host, folder: Path, data: Path, *args: str):
        self.folder, self.log = folder, folder / f"log-{time.monotonic_ns()}.txt"
        env = {"MLFLOW_TRACKING_URI": f"sqlite:///{folder}/mlflow.db"}
        script = ["python", "tests/integration/recorded.py", "jobs/mse_codec.py", "tiny"]
        with self.log.open("w") as out:
            command = [*script, "--output", folder, "--data", data, *ARGS, *args]
            self.process = head.start(command, env=env, stdout=out, stderr=out)

    def seen(self, rank: int = 0) -> list[dict]:
        """All batches of a rank, over all attempts."""
        path = self.folder / f"seen-mse-codec-{rank}.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def steps(self) -> list[int]:
        return [batch["position"][0] // BATCH for batch in self.seen()]

    def wait_for_step(self, step: int, timeout_s: float = 400) -> None:
        deadline = time.monotonic() + timeout_s
        while step not in self.steps():
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(0.1)

    def wait_for_checkpoint(self, timeout_s: float = 100) -> None:
        deadline = time.monotonic() + timeout_s
        while not list(self.folder.glob("checkpoints/*/checkpoint_manager_snapshot.json")):
            assert self.process.poll() is None and time.monotonic() < deadline, self.log.read_text()[-4000:]
            time.sleep(0.1)

    def end(self, timeout_s: float = 600) -> str:
        """Wait until the run has succeeded; returns the artifact's digest."""
        assert self.process.wait(timeout_s) == 0, self.log.read_text()[-4000:]
        return re.search(r"sha256 (\w{12})", self.log.read_text())[1]

    def pause_s(self) -> float:
        """The longest time between two batches."""
        times = [batch["time"] for batch in self.seen()]
        return max(b - a for a, b in zip(times, times[1:], strict=False))


def curves(folder: Path, monkeypatch) -> dict[str, list[int]]:
    """Steps of a training and a validation curve, over all runs in the folder's store."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    store = client()
    runs = store.search_runs([e.experiment_id for e in store.search_experiments()])
    names = ("train/loss", "val/psnr_db")
    return {name: [m.step for run in runs for m in store.get_metric_history(run.info.run_id, name)] for name in names}


WHOLE = {"train/loss": list(range(2, STEPS + 1, 2)), "val/psnr_db": list(range(EVERY, STEPS + 1, EVERY))}


def went_back_once(steps: list[int], every: int = EVERY) -> bool:
    """Check that the steps run to the end, with one return to a checkpoint."""
    back = [i for i in range(1, len(steps)) if steps[i] != steps[i - 1] + 1]
    return len(back) == 1 and steps[back[0]] % every == 0 and 0 < steps[back[0]] < STEPS and steps[-1] == STEPS - 1


def orphans(host: hosts.Host) -> list[int]:
    """Train workers on a host."""
    found = []
    for pid in hosts.processes(host.namespace):
        try:
            found += [pid] if "RayTrainWorker" in " ".join(psutil.Process(pid).cmdline()) else []
        except psutil.NoSuchProcess:
            pass
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return hosts.shards(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def cluster(short_folder):
    """A head and two worker nodes with Ray, and a spare host without."""
    with hosts.cluster(short_folder, num_spare=1) as made:
        yield made


@pytest.fixture(scope="module")
def unbroken(cluster, data, tmp_path_factory) -> str:
    """Artifact digest of a run without faults."""
    run = Run(cluster[0], tmp_path_factory.mktemp("unbroken"), data)
    digest = run.end()
    assert run.steps() == list(range(STEPS))
    return digest


def test_the_network_is_cut_for_20_s(cluster, data, unbroken, tmp_path, monkeypatch):
    """The workers wait in their all-reduce. Ray Train either waits, too, or restarts from a checkpoint."""
    run = Run(cluster[0], tmp_path, data)
    run.wait_for_step(EVERY + 2)
    cluster[2].cut()
    time.sleep(20)
    cluster[2].join()
    assert run.end() == unbroken
    print(f"\n{run.pause_s():.1f} s without a step")
    assert run.steps() == list(range(STEPS)) or went_back_once(run.steps())
    assert curves(tmp_path, monkeypatch) == WHOLE


NODES = """
import ray
ray.init(logging_level="ERROR")
print({node["NodeManagerAddress"]: node["NodeID"] for node in ray.nodes() if node["Alive"]})
"""


def announce_the_end(head: hosts.Host, leaving: hosts.Host, *, deadline_s: int) -> None:
    """Drain a node, as an autoscaler or a node's agent does when a spot node will end."""
    nodes = ast.literal_eval(head.run(["python", "-c", NODES]).stdout.splitlines()[-1])
    command = ["ray", "drain-node", f"--address={head.address}:{hosts.RAY_PORT}", f"--node-id={nodes[leaving.address]}"]
    why = [
        "--reason=DRAIN_NODE_REASON_PREEMPTION",
        "--reason-message=spot",
        f"--deadline-remaining-seconds={deadline_s}",
    ]
    done = head.run([*command, *why])
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_node_is_drained_before_it_ends(cluster, data, unbroken, tmp_path, monkeypatch):
    """`ray drain-node`: the stage writes a checkpoint at once, and resumes from it on another node."""
    head, *workers, spare = cluster
    run = Run(head, tmp_path, data, "--mse-codec.checkpoint-every", str(STEPS))  # no regular checkpoint before the end
    run.wait_for_step(EVERY)
    (leaving,) = [host for host in workers if host.name == run.seen(1)[-1]["host"]]
    announce_the_end(head, leaving, deadline_s=30)
    run.wait_for_checkpoint()
    leaving.cut()
    leaving.kill()
    spare.start_ray(head, num_cpus=2)
    assert run.end() == unbroken
    print(f"\n{run.pause_s():.1f} s without a step")
    assert went_back_once(run.steps(), every=1)
    assert run.seen(1)[-1]["host"] != leaving.name
    spare.kill()
    leaving.join()
    leaving.start_ray(head, num_cpus=2)
    steps = curves(tmp_path, monkeypatch)["train/loss"]
    assert sorted(set(steps)) == sorted(steps) and set(steps) >= set(WHOLE["train/loss"])


def test_a_worker_node_dies_and_another_joins(cluster, data, unbroken, tmp_path, monkeypatch):
    head, _, dying, spare = cluster
    run = Run(head, tmp_path, data)
    run.wait_for_step(EVERY + 5)
    dying.cut()  # first: a dead machine does not close its connections
    dying.kill()
    spare.start_ray(head, num_cpus=2)
    assert run.end() == unbroken
    print(f"\n{run.pause_s():.1f} s without a step")
    assert went_back_once(run.steps())
    assert curves(tmp_path, monkeypatch) == WHOLE


def test_the_head_dies_and_the_job_is_submitted_again(cluster, data, unbroken, tmp_path, monkeypatch):
    head, *workers = cluster
    run = Run(head, tmp_path, data)
    run.wait_for_step(EVERY + 5)
    head.kill()
    killed = time.monotonic()
    for worker in workers:
        while orphans(worker):
            assert time.monotonic() < killed + 300, "train workers of a dead head are still running"
            time.sleep(1)
        print(f"\n{worker.name}: orphans gone after {time.monotonic() - killed:.0f} s")
        worker.kill()  # Ray leaves its log monitor behind
        worker.join()
    print(f"last step of the orphans: {run.steps()[-1]}")
    hosts.start_cluster(head, workers)
    again = Run(head, tmp_path, data)
    assert again.end() == unbroken
    print(f"{again.pause_s():.1f} s from the orphans' last step to the next")
    assert went_back_once(again.steps())
    assert curves(tmp_path, monkeypatch) == WHOLE
