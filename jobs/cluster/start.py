"""The Ray cluster: joining or starting it, what stages need of it, and leaving it when told to stop."""

import logging
import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.autoscaler.sdk import request_resources
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from egic.errors import UserError
from jobs.cluster import forks
from jobs.config.schema import ComputeConfig
from jobs.storage.files import absolute, is_remote, write
from jobs.tracking import runs, store

log = logging.getLogger(__name__)

AUTHENTICATION = "ray._private.authentication.authentication_token_setup"  # Ray's logger of that
LEAVE_S = 20.0
"""How long Ray's end waits for stages that are still running."""
BUSY = "Ray did not start within the 30 s that it gives itself: this machine is too busy"


def start_ray() -> None:
    """Join the cluster that RAY_ADDRESS or a submitted job names, else start Ray on this machine."""
    if ray.is_initialized():
        return
    root = str(Path(__file__).resolve().parents[2])
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    os.environ["PYTHONPATH"] = os.pathsep.join([root, *(p for p in paths if p and p != root)])
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # reports are heard this often; Ray's 2 s wait
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")  # it shows every printed line twice
    if not sys.stdout.isatty():
        os.environ.setdefault("RAY_COLOR_PREFIX", "0")  # no colours in files and `ray job logs`
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if not os.environ.get("RAY_ADDRESS"):
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")  # nobody preempts this machine
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")  # Ray Train's workers could not use those
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")  # for the dashboard, which does not run
    log.info("%s Ray", "joining" if os.environ.get("RAY_ADDRESS") else "starting")
    logging.getLogger(AUTHENTICATION).addFilter(_not_enabled)
    try:
        with forks.in_use() as runtime_env, handlers_kept():
            ray.init(
                logging_level=logging.WARNING,
                runtime_env=runtime_env or None,
                include_dashboard=None if os.environ.get("RAY_ADDRESS") else False,
            )
    except Exception as e:  # Ray has no type for it, and no setting for the time
        if "timed out during startup" not in str(e):
            raise
        raise UserError(
            f"{BUSY}; give the same command again when less runs beside it, or run `ray start --head` first and set "
            "RAY_ADDRESS=127.0.0.1:6379"
        ) from e
    quiet_ray()


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Ray takes SIGTERM over as it starts; what the program answers to signals stays."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if callable(handler):
                signal.signal(number, handler)


def _not_enabled(record: logging.LogRecord) -> bool:
    """Ray warns at every start that its ports ask for a token, as they should; that they do not would still be told."""
    return "authentication is enabled" not in record.getMessage()


def quiet_ray() -> None:
    """Leave out what Ray's libraries tell of every dataset and report; warnings stay."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that bars are off, as we asked
    logging.getLogger().setLevel(logging.WARNING)  # Ray Train's workers have it at INFO, and tell of every report


def of_worker(compute: ComputeConfig) -> dict[str, float]:
    """Resources that each train worker reserves."""
    return {"CPU": compute.cpus_per_worker} | ({"GPU": 1.0} if compute.use_gpu else {})


def needed(compute: ComputeConfig) -> dict[str, float]:
    """Resources that one stage reserves at least: its workers, and one data task for each."""
    cpus = compute.min_workers * (compute.cpus_per_worker + compute.data_cpus)
    return {"CPU": cpus} | ({"GPU": float(compute.min_workers)} if compute.use_gpu else {})


def places(compute: ComputeConfig) -> int:
    """How many workers the nodes have room for, each whole on one node."""
    worker = of_worker(compute)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(node.get(name, 0.0) / count + 1e-6) for name, count in worker.items()) for node in nodes)


def lacking(compute: ComputeConfig) -> str:
    """What the cluster lacks for a stage, in words; empty when it has room."""
    there = ray.cluster_resources()
    workers = f"{compute.min_workers} workers"
    for name, count in needed(compute).items():
        if there.get(name, 0.0) < count:
            return (
                f"{workers} and their data tasks need {count:g} {name}, the cluster has {there.get(name, 0.0):g}; "
                "lower compute.workers, compute.cpus_per_worker or compute.data_cpus"
                + (", or compute.use_gpu" if name == "GPU" else "")
            )
    if (room := places(compute)) < compute.min_workers:
        return (
            f"{workers} of {compute.cpus_per_worker:g} CPU{' and 1 GPU' if compute.use_gpu else ''} each do not fit on "
            f"the cluster's nodes, {room} do; lower compute.workers or compute.cpus_per_worker"
        )
    return ""


def check_resources(compute: ComputeConfig) -> None:
    """Raise UserError when the cluster can't place a stage, after `wait_s`: Ray itself would wait without a word."""
    if not (lack := lacking(compute)):
        return
    if compute.wait_s:
        log.warning("waiting %g s for nodes: %s", compute.wait_s, lack)
        request_resources(bundles=[of_worker(compute)] * compute.max_workers)  # for an autoscaler, if there is one
        try:
            deadline = time.monotonic() + compute.wait_s
            while time.monotonic() < deadline and lacking(compute):
                time.sleep(1)
        finally:
            request_resources(bundles=[])
    if lack := lacking(compute):
        raise UserError(lack + ("" if compute.wait_s else "; compute.wait_s waits for nodes that are still to come"))


def release_reserved(actor_id: str) -> None:
    """Give back what a dead actor had reserved for others; Ray itself does so when the whole job ends.

    Ray Train has a helper for its controllers. It does not know of groups that are just being made, and does not work
    where two clusters run on one machine; what it leaves, the next workers would wait for without end.
    """
    for content in ray._private.state.state._connect_and_get_accessor().get_placement_group_table():
        group = PlacementGroupTableData.FromString(content)
        if group.creator_actor_id.hex() == actor_id and group.state != PlacementGroupTableData.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))


def check_shared(output: str, *files: str) -> None:
    """Raise UserError naming a node that does not see local output, or one of the local files that stages read."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    local = [absolute(file) for file in files if not is_remote(file)]
    if len(nodes) < 2 or (is_remote(output) and not local):
        return
    mark = None if is_remote(output) else Path(absolute(output), f".egic-{uuid.uuid4().hex}")
    try:
        if mark:
            write(mark, b"")
            local.append(str(mark))
        asked = [_looker(node).remote(local) for node in nodes]
        for node, unseen in zip(nodes, ray.get(asked, timeout=60), strict=True):
            if unseen:
                folder = os.path.dirname(unseen[0])
                raise UserError(
                    f"node {node['NodeManagerAddress']} does not see what this machine has in {folder}; name storage "
                    "that every node reaches with --data and --output: a shared folder, s3://bucket/folder or gs://..."
                )
    finally:
        if mark:
            mark.unlink(missing_ok=True)


def _looker(node: dict):
    where: Any = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)  # Ray's hints forget this one
    return ray.remote(num_cpus=0, scheduling_strategy=where)(_unseen)


def _unseen(files: list[str]) -> list[str]:
    """The files that this node does not see, within a few seconds: network disks hear of new ones late."""
    deadline = time.monotonic() + 5
    while (unseen := [file for file in files if not os.path.exists(file)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    return unseen


def stages_side_by_side(compute: ComputeConfig) -> int:
    """How many stages the cluster can run at once."""
    there = ray.cluster_resources()
    return max(1, min(int(there.get(name, 0.0) // count) for name, count in needed(compute).items()))


def threads(compute: ComputeConfig, side_by_side: int) -> int:
    """A node's cores divided among the workers that share it."""
    cores = os.cpu_count() or 1
    nodes = max(1, sum(n["Alive"] and n["Resources"].get("CPU", 0) > 0 for n in ray.nodes()))  # a head often has none
    return max(1, cores // max(1, -(-compute.max_workers * side_by_side // nodes)))


stopping = threading.Event()
"""Set when the program was told to stop, or a stage failed."""
_running: list[Callable[[], None]] = []


@contextmanager
def stoppable(ask: Callable[[], None]) -> Iterator[None]:
    """While the block runs, Ctrl-C or SIGTERM calls `ask`, which asks for an early end; the block shall end then."""
    _running.append(ask)
    try:
        if stopping.is_set():
            raise KeyboardInterrupt
        yield
    finally:
        _running.remove(ask)


def leave() -> None:
    """End what runs beside a failed stage, and shut Ray down.

    In this order: a thread that waits in `ray.get` while Ray shuts down may spin there for ever after.
    """
    stopping.set()
    deadline = time.monotonic() + LEAVE_S
    while _running and ray.is_initialized() and time.monotonic() < deadline:
        _kill_controllers()
        time.sleep(0.1)
    ray.shutdown()


def _kill_controllers() -> None:
    """Of this driver's stages; Ray Train keeps their handles to itself."""
    worker: Any = ray._private.worker.global_worker  # its types forget the core
    for actor in ray._private.state.actors().values():
        ours = actor["JobID"] == worker.current_job_id.hex() and actor["ActorClassName"] == "TrainController"
        if ours and actor["State"] != "DEAD":
            worker.core_worker.kill_actor(ray.ActorID.from_hex(actor["ActorID"]), True)


class interruptible:
    """Ctrl-C and SIGTERM (`ray job stop`, a spot node's notice) end a run: Ray stops, MLflow's runs end as KILLED.

    On the first one the stages that train write a checkpoint first, for which they have `grace_s`; the second ends at
    once.
    """

    def __init__(self, grace_s: float = 0.0):
        self.grace_s, self.over = grace_s, threading.Event()

    def __enter__(self) -> None:
        stopping.clear()
        self.before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}

    def _stop(self, number: int, _) -> None:
        store.interrupted.set()
        if stopping.is_set() or not _running:
            raise KeyboardInterrupt
        stopping.set()
        if number == signal.SIGINT:
            print("stopping, with a checkpoint first; Ctrl-C again stops at once", file=sys.stderr, flush=True)
        threading.Thread(target=self._wind_down, name="stop", daemon=True).start()  # a handler must not wait

    def _wind_down(self) -> None:
        for ask in list(_running):
            ask()
        runs.kill_open_runs()  # now: `ray job stop` kills after 3 s
        if not self.over.wait(self.grace_s):
            os.kill(os.getpid(), signal.SIGTERM)

    def __exit__(self, kind, error, _) -> None:
        self.over.set()
        if kind is not None:
            if issubclass(kind, KeyboardInterrupt):
                store.interrupted.set()
                error.args = ("the same command goes on from the last checkpoint",)
            leave()
        for number, handler in self.before.items():
            signal.signal(number, handler)
