"""Which failures of a stage are retried."""

from types import SimpleNamespace

import pytest
import ray

from egic.errors import NonFiniteError, UserError
from jobs.cluster import shutdown
from jobs.training import trainer
from jobs.training.reports import Reports


@pytest.mark.parametrize(
    "stopped, error, tries", [(False, ray.exceptions.ActorDiedError, 3), (True, KeyboardInterrupt, 1)]
)
def test_a_dead_controller_is_restarted_unless_the_run_ends(stopped, error, tries, monkeypatch):
    begun = []

    def fit():
        begun.append(1)
        raise ray.exceptions.ActorDiedError

    monkeypatch.setattr(trainer, "release_reserved", lambda actor: None)
    with shutdown.interruptible():  # as a run begins
        pass
    if stopped:
        shutdown.stopping.set()
    try:
        with pytest.raises(error):
            trainer.fit_again(SimpleNamespace(fit=fit), max_failures=2)
    finally:
        shutdown.stopping.clear()
    assert len(begun) == tries


@pytest.mark.parametrize("error", [UserError("shard 3 is damaged"), NonFiniteError("non-finite seg")])
def test_errors_that_would_recur_end_the_stage(error):
    with pytest.raises(UserError, match=str(error)):
        Reports("run", 1, None).after_exception(None, {0: error})


@pytest.mark.parametrize(
    "error", [ValueError("a fault of ours"), RuntimeError("CUDA"), OSError(5, "input/output error")]
)
def test_other_errors_are_left_to_rays_retries(error):
    Reports("run", 1, None).after_exception(None, {0: error})
