"""A stage that the cluster can never place is an error that names the missing resources."""

import os

import pytest

from jobs.cluster import resources
from jobs.config.schema import ComputeConfig


@pytest.fixture
def two_cpus(monkeypatch):
    monkeypatch.setattr(resources.ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(resources.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 1.0}}] * 2)


def test_workers_that_fit_are_accepted(two_cpus):
    resources.check_resources(ComputeConfig(workers=2, cpus_per_worker=0.5, data_cpus=0.5))


def test_too_many_workers_are_refused(two_cpus):
    with pytest.raises(ValueError, match="8 workers and their data tasks need 16 CPU, the cluster has 2"):
        resources.check_resources(ComputeConfig(workers=8))


def test_missing_gpus_are_refused(two_cpus):
    with pytest.raises(ValueError, match="need 1 GPU, the cluster has 0.*compute.use_gpu"):
        resources.check_resources(ComputeConfig(workers=1, use_gpu=True, cpus_per_worker=0.5))


def test_workers_that_fit_on_no_node_are_refused(two_cpus):
    with pytest.raises(ValueError, match="1 workers of 1.5 CPU each do not fit on the cluster's nodes, 0 do"):
        resources.check_resources(ComputeConfig(cpus_per_worker=1.5, data_cpus=0.5))


def test_an_elastic_group_must_fit_at_its_smallest_size(two_cpus):
    resources.check_resources(ComputeConfig(workers="1:8", cpus_per_worker=0.5, data_cpus=0.5))
    with pytest.raises(ValueError, match="3 workers and their data tasks need 3 CPU"):
        resources.check_resources(ComputeConfig(workers="3:8", cpus_per_worker=0.5, data_cpus=0.5))


def test_nodes_of_an_autoscaler_are_requested_and_awaited(two_cpus, monkeypatch):
    asked, nodes = [], {"CPU": 2.0}
    monkeypatch.setattr(resources, "request_resources", lambda bundles: asked.append(bundles) or nodes.update(CPU=8.0))
    monkeypatch.setattr(resources.ray, "cluster_resources", lambda: nodes)
    monkeypatch.setattr(resources.ray, "nodes", lambda: [{"Alive": True, "Resources": nodes}])
    resources.check_resources(ComputeConfig(workers="2:4", wait_s=30))
    assert asked == [[{"CPU": 2.0}] * 4, []]  # workers reserve the CPUs of their data tasks


def test_nodes_are_requested_for_data_tasks_too(two_cpus, monkeypatch):
    asked = []
    monkeypatch.setattr(resources, "request_resources", lambda bundles: asked.append(bundles))
    with pytest.raises(ValueError, match="need 8 CPU, the cluster has 2"):
        resources.check_resources(ComputeConfig(workers=4, wait_s=0.01))
    assert asked == [[{"CPU": 1.0}, {"CPU": 1.0}] * 4, []]


@pytest.mark.parametrize("cpus, stages", [(0.5, 2), (1.0, 1), (2.0, 1)])
def test_number_of_stages_in_parallel(two_cpus, cpus, stages):
    assert resources.stages_side_by_side(ComputeConfig(cpus_per_worker=cpus, data_cpus=0.5)) == stages


def test_elastic_stages_in_parallel_leave_room_for_their_data_tasks(two_cpus):
    """Ray gives an elastic group all workers that fit, at once."""
    compute = ComputeConfig(workers="1:2", cpus_per_worker=0.5, data_cpus=0.5)
    assert resources.stages_side_by_side(compute) == 1
    assert resources.of_worker(compute) == {"CPU": 1.0} and resources.of_data_task(compute) == 0


@pytest.fixture
def three_nodes(monkeypatch):
    """A head without CPUs, a node that shares this machine's files, and one with a separate disk."""
    nodes = [("head", 0.0), ("10.0.0.1", 4.0), ("10.0.0.2", 4.0)]
    nodes = [{"NodeID": n, "NodeManagerAddress": n, "Alive": True, "Resources": {"CPU": cpus}} for n, cpus in nodes]
    seen = []

    class Looker:
        def __init__(self, node):
            self.node = node["NodeID"]

        def remote(self, files):
            seen.append((self.node, list(files)))
            there = all(os.path.exists(file) for file in files)  # the marker exists during the check
            return resources._unseen(files) if self.node == "10.0.0.1" else files if there else ["no marker"]

    monkeypatch.setattr(resources.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(resources.ray, "get", lambda answers, timeout: answers)
    monkeypatch.setattr(resources, "_looker", Looker)
    return nodes, seen


def test_local_output_that_a_node_cannot_access_is_refused(three_nodes, tmp_path):
    nodes, seen = three_nodes
    with pytest.raises(ValueError, match=f"node 10.0.0.2 cannot access {tmp_path}/out of this machine"):
        resources.check_shared(str(tmp_path / "out"))
    assert [node for node, _ in seen] == ["10.0.0.1", "10.0.0.2"] and not list((tmp_path / "out").iterdir())
    nodes.pop()
    seen.clear()
    resources.check_shared(str(tmp_path / "out"))
    assert [node for node, _ in seen] == ["10.0.0.1"], "the head has no CPUs, but may be this machine"
    del nodes[1:]
    resources.check_shared(str(tmp_path / "out"))
    assert len(seen) == 1, "one machine needs no check"


def test_local_data_that_a_node_cannot_access_is_refused(three_nodes, tmp_path):
    file = tmp_path / "manifest.json"
    file.write_text("{}")
    with pytest.raises(ValueError, match=f"node 10.0.0.2 cannot access {tmp_path}"):
        resources.check_shared("s3://bucket/runs", str(file), "s3://bucket/shards/manifest.json")
    assert three_nodes[1][0][1] == [str(file)]
    three_nodes[1].clear()
    resources.check_shared("s3://bucket/runs", "s3://bucket/shards/manifest.json")
    assert not three_nodes[1]


@pytest.mark.parametrize("head_cpus", [0.0, 8.0])
def test_threads_are_divided_by_the_workers_of_a_node(monkeypatch, head_cpus):
    nodes = [{"Alive": True, "Resources": {"CPU": cpus} if cpus else {}} for cpus in (head_cpus, 8.0, 8.0)]
    monkeypatch.setattr(resources.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(resources.joblib, "cpu_count", lambda: 8)
    assert resources.threads(ComputeConfig(workers=3), side_by_side=1) == (8 if head_cpus else 4)
