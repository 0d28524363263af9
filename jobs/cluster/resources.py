"""Resources that stages need from a Ray cluster: CPUs, GPUs, threads, and storage that every node reaches."""

import logging
import os
import time
import uuid
from pathlib import Path
from typing import Any

import joblib
import ray
from ray.autoscaler.sdk import request_resources
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from egic.errors import UserError
from jobs.config.schema import ComputeConfig
from jobs.storage.files import absolute, is_remote, write

log = logging.getLogger(__name__)


def of_worker(compute: ComputeConfig) -> dict[str, float]:
    """Resources that each train worker reserves. A group of changing size takes all that is free, so its workers
    reserve the CPUs of their data tasks as well."""
    cpus = compute.cpus_per_worker + (compute.data_cpus if compute.is_elastic else 0.0)
    return {"CPU": cpus} | ({"GPU": 1.0} if compute.use_gpu else {})


def of_data_task(compute: ComputeConfig) -> float:
    """CPUs that each data task reserves."""
    return 0.0 if compute.is_elastic else compute.data_cpus


def needed(compute: ComputeConfig, num_workers: int) -> dict[str, float]:
    """The resources of one stage with so many workers, and one data task for each."""
    each = of_worker(compute)
    each["CPU"] += of_data_task(compute)
    return {name: num_workers * count for name, count in each.items()}


def places(compute: ComputeConfig) -> int:
    """Number of workers that fit on the nodes; a worker cannot be split between nodes."""
    worker = of_worker(compute)
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return sum(min(int(node.get(name, 0.0) / count + 1e-6) for name, count in worker.items()) for node in nodes)


def lacking(compute: ComputeConfig) -> str:
    """A message that names the resources a stage lacks on this cluster; empty when it fits."""
    total = ray.cluster_resources()
    workers = f"{compute.min_workers} workers"
    for name, count in needed(compute, compute.min_workers).items():
        if total.get(name, 0.0) < count:
            return (
                f"{workers} and their data tasks need {count:g} {name}, the cluster has {total.get(name, 0.0):g}; "
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
    """Raise UserError when the cluster can't place a stage after `wait_s`; Ray itself would wait without a message."""
    if not (lack := lacking(compute)):
        return
    if compute.wait_s:
        log.warning("waiting %g s for nodes: %s", compute.wait_s, lack)
        tasks = [{"CPU": of_data_task(compute)}] if of_data_task(compute) else []
        request_resources(bundles=([of_worker(compute)] + tasks) * compute.max_workers)  # for an autoscaler, if any
        try:
            deadline = time.monotonic() + compute.wait_s
            while time.monotonic() < deadline and lacking(compute):
                time.sleep(1)
        finally:
            request_resources(bundles=[])
    if lack := lacking(compute):
        raise UserError(lack + ("" if compute.wait_s else "; compute.wait_s sets a time to wait for nodes"))


def check_shared(output: str, *files: str) -> None:
    """Raise UserError naming a node that cannot access a local output folder, or a local file that stages read."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = [node for node in alive if node["Resources"].get("CPU")]
    local = [absolute(file) for file in files if not is_remote(file)]
    if len(alive) < 2 or (is_remote(output) and not local):
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
                    f"node {node['NodeManagerAddress']} cannot access {folder} of this machine; use storage "
                    "that every node reaches for inputs and outputs: a shared folder, s3://bucket/folder or gs://..."
                )
    finally:
        if mark:
            mark.unlink(missing_ok=True)


def _looker(node: dict):
    where: Any = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)  # missing in Ray's type annotations
    return ray.remote(num_cpus=0, scheduling_strategy=where)(_unseen)


def _unseen(files: list[str]) -> list[str]:
    """The files that do not exist on this node within 5 s, since network disks show new files with a delay."""
    deadline = time.monotonic() + 5
    while (unseen := [file for file in files if not os.path.exists(file)]) and time.monotonic() < deadline:
        time.sleep(0.2)
    return unseen


def stages_side_by_side(compute: ComputeConfig) -> int:
    """How many stages the cluster can run at once."""
    total = ray.cluster_resources()
    wanted = needed(compute, compute.max_workers)  # which an elastic stage takes, if they are free
    return max(1, min(int(total.get(name, 0.0) // count) for name, count in wanted.items()))


def threads(compute: ComputeConfig, side_by_side: int) -> int:
    """Threads per worker: a node's cores divided by the workers on it. All nodes are assumed to have as many cores as
    this process may use here, by its CPU affinity and its container's quota."""
    nodes = max(1, sum(n["Alive"] and n["Resources"].get("CPU", 0) > 0 for n in ray.nodes()))  # a head often has none
    return max(1, joblib.cpu_count() // max(1, -(-compute.max_workers * side_by_side // nodes)))
