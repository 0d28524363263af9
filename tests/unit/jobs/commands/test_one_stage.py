"""One stage alone: its errors name the parents that it needs."""

from dataclasses import replace

import pytest

from jobs.commands import one_stage
from jobs.config.presets import extended, tiny
from jobs.training.stage import load_stage


def test_a_missing_parent_is_an_error_that_names_it():
    config = extended(tiny, one_stage.StageConfig)()
    with pytest.raises(ValueError, match="--init-from models:/egic-mse-codec@best models:/egic-segmentation@best"):
        one_stage.named_parents(load_stage("gan"), config)


def test_a_parent_that_is_not_an_artifact_is_refused(tmp_path):
    config = replace(extended(tiny, one_stage.StageConfig)(), init_from=(str(tmp_path),))
    with pytest.raises(ValueError, match="not an EGIC model"):
        one_stage.named_parents(load_stage("gan"), config)
