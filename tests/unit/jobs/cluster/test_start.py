"""A cluster that can never place a stage says what it lacks, instead of waiting without a word."""

import importlib
import logging.config
import os
import pickle
import signal
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
from ray.core.generated.gcs_pb2 import PlacementGroupTableData

from egic.errors import run_main
from jobs.cluster import start
from jobs.commands import one_stage
from jobs.config.presets import extended, tiny
from jobs.config.schema import ComputeConfig
from jobs.training import reports, trainer
from jobs.training.stage import load_stage


@pytest.fixture
def two_cpus(monkeypatch):
    monkeypatch.setattr(start.ray, "cluster_resources", lambda: {"CPU": 2.0})
    monkeypatch.setattr(start.ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 1.0}}] * 2)


def test_what_fits_is_accepted(two_cpus):
    start.check_resources(ComputeConfig(workers=2, cpus_per_worker=0.5, data_cpus=0.5))


def test_too_many_workers(two_cpus):
    with pytest.raises(ValueError, match="8 workers and their data tasks need 16 CPU, the cluster has 2"):
        start.check_resources(ComputeConfig(workers=8))


def test_gpus_that_are_not_there(two_cpus):
    with pytest.raises(ValueError, match="need 1 GPU, the cluster has 0.*compute.use_gpu"):
        start.check_resources(ComputeConfig(workers=1, use_gpu=True, cpus_per_worker=0.5))


def test_workers_that_fit_on_no_node(two_cpus):
    with pytest.raises(ValueError, match="1 workers of 1.5 CPU each do not fit on the cluster's nodes, 0 do"):
        start.check_resources(ComputeConfig(cpus_per_worker=1.5, data_cpus=0.5))


def test_an_elastic_group_needs_room_for_its_smallest_size(two_cpus):
    start.check_resources(ComputeConfig(workers="1:8"))
    with pytest.raises(ValueError, match="3 workers and their data tasks need 6 CPU"):
        start.check_resources(ComputeConfig(workers="3:8"))


def test_nodes_that_are_to_come_are_waited_for_and_asked_for(two_cpus, monkeypatch):
    asked, nodes = [], {"CPU": 2.0}
    monkeypatch.setattr(start, "request_resources", lambda bundles: asked.append(bundles) or nodes.update(CPU=8.0))
    monkeypatch.setattr(start.ray, "cluster_resources", lambda: nodes)
    monkeypatch.setattr(start.ray, "nodes", lambda: [{"Alive": True, "Resources": nodes}])
    start.check_resources(ComputeConfig(workers="2:4", wait_s=30))
    assert asked == [[{"CPU": 1.0}] * 4, []]


def test_what_a_dead_actor_reserved_is_given_back_and_nothing_else(monkeypatch):
    actors = {"dead": b"a" * 16, "another": b"b" * 16, "driver": b"\xff" * 16}
    ids = {name: os.urandom(18) for name in actors}
    stored = [
        PlacementGroupTableData(placement_group_id=ids[name], creator_actor_id=actor).SerializeToString()
        for name, actor in actors.items()
    ]
    accessor, freed = SimpleNamespace(get_placement_group_table=lambda: stored), []
    monkeypatch.setattr(start.ray._private.state.state, "_connect_and_get_accessor", lambda: accessor)
    monkeypatch.setattr(start, "remove_placement_group", lambda group: freed.append(group.id.binary()))
    start.release_reserved(actors["dead"].hex())
    assert freed == [ids["dead"]]


@pytest.mark.parametrize("cpus, stages", [(0.5, 2), (1.0, 1), (2.0, 1)])
def test_stages_side_by_side(two_cpus, cpus, stages):
    assert start.stages_side_by_side(ComputeConfig(cpus_per_worker=cpus, data_cpus=0.5)) == stages


def test_a_machine_too_busy_for_ray_is_told_in_a_line(monkeypatch):
    monkeypatch.setattr(start.ray, "is_initialized", lambda: False)
    for message, kind, line in (("timed out during startup", ValueError, "too busy"), ("else", RuntimeError, "else")):

        def init(message=message, **_):
            raise RuntimeError(f"The current node {message}.")

        monkeypatch.setattr(start.ray, "init", init)
        with pytest.raises(kind, match=line):
            start.start_ray()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_as_ray_starts_it_does_not_take_the_programs_signals_over(number, monkeypatch):
    monkeypatch.setattr(start.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(start.ray, "init", lambda **_: signal.signal(number, signal.SIG_DFL))
    monkeypatch.setattr(start, "quiet_ray", lambda: None)
    with start.interruptible():
        ours = signal.getsignal(number)
        start.start_ray()
        assert signal.getsignal(number) == ours


@pytest.fixture
def three_nodes(monkeypatch):
    """A head without CPUs, a node that sees this machine's files, and one whose disk is its own."""
    nodes = [("head", 0.0), ("10.0.0.1", 4.0), ("10.0.0.2", 4.0)]
    nodes = [{"NodeID": n, "NodeManagerAddress": n, "Alive": True, "Resources": {"CPU": cpus}} for n, cpus in nodes]
    seen = []

    class Looker:
        def __init__(self, node):
            self.node = node["NodeID"]

        def remote(self, files):
            seen.append((self.node, list(files)))
            there = all(os.path.exists(file) for file in files)  # the marker is there while it is looked for
            return start._unseen(files) if self.node == "10.0.0.1" else files if there else ["no marker"]

    monkeypatch.setattr(start.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(start.ray, "get", lambda answers, timeout: answers)
    monkeypatch.setattr(start, "_looker", Looker)
    return nodes, seen


def test_local_output_that_a_node_does_not_see(three_nodes, tmp_path):
    nodes, seen = three_nodes
    with pytest.raises(ValueError, match=f"node 10.0.0.2 does not see what this machine has in {tmp_path}/out"):
        start.check_shared(str(tmp_path / "out"))
    assert [node for node, _ in seen] == ["10.0.0.1", "10.0.0.2"] and not list((tmp_path / "out").iterdir())
    nodes.pop()
    start.check_shared(str(tmp_path / "out"))  # one node with CPUs is left


def test_local_data_that_a_node_does_not_see(three_nodes, tmp_path):
    file = tmp_path / "manifest.json"
    file.write_text("{}")
    with pytest.raises(ValueError, match=f"node 10.0.0.2 does not see what this machine has in {tmp_path}"):
        start.check_shared("s3://bucket/runs", str(file), "s3://bucket/shards/manifest.json")
    assert three_nodes[1][0][1] == [str(file)]
    three_nodes[1].clear()
    start.check_shared("s3://bucket/runs", "s3://bucket/shards/manifest.json")
    assert not three_nodes[1]


@pytest.mark.parametrize("head_cpus", [0.0, 8.0])
def test_threads_are_shared_among_the_nodes_that_run_workers(monkeypatch, head_cpus):
    nodes = [{"Alive": True, "Resources": {"CPU": cpus} if cpus else {}} for cpus in (head_cpus, 8.0, 8.0)]
    monkeypatch.setattr(start.ray, "nodes", lambda: nodes)
    monkeypatch.setattr(start.os, "cpu_count", lambda: 8)
    assert start.threads(ComputeConfig(workers=3), side_by_side=1) == (8 if head_cpus else 4)


def test_a_stage_alone_names_the_parents_it_needs():
    config = extended(tiny, one_stage.StageConfig)()
    with pytest.raises(ValueError, match="--init-from models:/egic-mse-codec@best models:/egic-segmentation@best"):
        one_stage.named_parents(load_stage("gan"), config)


def test_a_parent_that_is_no_artifact(tmp_path):
    config = replace(extended(tiny, one_stage.StageConfig)(), init_from=(str(tmp_path),))
    with pytest.raises(ValueError, match="no EGIC model"):
        one_stage.named_parents(load_stage("gan"), config)


def test_ray_warns_of_open_ports_and_not_of_closed_ones(caplog):
    setup = importlib.import_module(start.AUTHENTICATION)
    setup.logger.addFilter(start._not_enabled)
    try:
        setup._warn_token_auth_enabled()
        setup._warn_token_auth_disabled()
    finally:
        setup.logger.removeFilter(start._not_enabled)
    assert [r.getMessage()[:32] for r in caplog.records] == ["Token authentication is disabled"]


def test_the_controller_tells_nothing_of_requests_that_wait(caplog):
    logger = importlib.import_module(reports.COORDINATOR).logger
    try:
        pickle.loads(pickle.dumps(reports.Reports("run", 1, None)))  # as it comes to the controller
        levels = {"ray.train": {"level": "WARNING"}}
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, "loggers": levels})
        logger.warning("a request waits")
        logger.error("a request is lost")
    finally:
        logger.removeFilter(reports._errors)
    assert [r.getMessage() for r in caplog.records] == ["a request is lost"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_for_a_checkpoint_and_the_second_ends(number, monkeypatch, capsys):
    asked, ended = threading.Event(), []
    monkeypatch.setattr(start, "stopping", threading.Event())
    monkeypatch.setattr(start.store, "interrupted", threading.Event())
    monkeypatch.setattr(start.runs, "kill_open_runs", lambda: None)
    monkeypatch.setattr(start.ray, "shutdown", lambda: ended.append(True))

    def main():
        with start.interruptible(60), start.stoppable(asked.set):
            os.kill(os.getpid(), number)
            assert asked.wait(10)
            os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    assert run_main(main) == 130
    assert ended and signal.getsignal(number) is before
    *said, last = capsys.readouterr().err.splitlines()
    assert last == "stopped; the same command goes on from the last checkpoint"
    assert said == ["stopping, with a checkpoint first; Ctrl-C again stops at once"] * (number == signal.SIGINT)


def test_ray_ends_when_nobody_waits_for_it_any_more(monkeypatch):
    """A stage fails while another one, in its thread, waits for its controller."""
    mine, alive = "01000000", {"ours": threading.Event()}
    actors = [("ours", mine, "ALIVE"), ("gone", mine, "DEAD"), ("another's", "02000000", "ALIVE")]
    table = {
        name: {"ActorID": name, "JobID": job, "ActorClassName": "TrainController", "State": state}
        for name, job, state in actors
    }
    order = []

    def kill(actor: str, no_restart: bool) -> None:
        order.append(actor)
        alive[actor].set()

    core = SimpleNamespace(kill_actor=kill)
    worker = SimpleNamespace(current_job_id=SimpleNamespace(hex=lambda: mine), core_worker=core)
    monkeypatch.setattr(start.ray, "is_initialized", lambda: True)
    monkeypatch.setattr(start.ray, "ActorID", SimpleNamespace(from_hex=str))
    monkeypatch.setattr(start.ray._private.state, "actors", lambda: table)
    monkeypatch.setattr(start.ray._private.worker, "global_worker", worker)
    monkeypatch.setattr(start.ray, "shutdown", lambda: order.append("shutdown"))
    started = threading.Event()

    def stage() -> None:
        with start.stoppable(lambda: None):
            started.set()
            alive["ours"].wait(20)
            table["ours"]["State"] = "DEAD"
            order.append("stage ended")

    beside = threading.Thread(target=stage)
    with pytest.raises(ValueError, match="as it must"), start.interruptible():
        beside.start()
        started.wait(10)
        raise ValueError("as it must")
    beside.join()
    assert sorted(set(order)) == ["ours", "shutdown", "stage ended"] and order[-1] == "shutdown"
    with start.interruptible(), start.stoppable(lambda: None):  # the next run may go on
        pass


@pytest.mark.parametrize("told, error", [(False, trainer.ray.exceptions.ActorDiedError), (True, KeyboardInterrupt)])
def test_a_controller_that_dies_while_the_run_ends_is_not_started_again(told, error, monkeypatch):
    tries = []

    def fit():
        tries.append(1)
        raise trainer.ray.exceptions.ActorDiedError

    monkeypatch.setattr(start, "stopping", threading.Event())
    monkeypatch.setattr(trainer.start, "release_reserved", lambda actor: None)
    if told:
        start.stopping.set()
    with pytest.raises(error):
        trainer.fit_again(SimpleNamespace(fit=fit), max_failures=2)
    assert len(tries) == (1 if told else 3)


def test_ray_train_leaves_ctrl_c_alone():
    """Its own handler ends the program with status 1 and no word."""
    before = signal.getsignal(signal.SIGINT)
    trainer.Trainer._register_sigint_handler(SimpleNamespace(), SimpleNamespace())
    assert signal.getsignal(signal.SIGINT) is before
