"""An archive of 2,000 pictures is compressed and decompressed with a kill in each."""

import pytest

from tests.archives import archived_with_kills

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.faults, pytest.mark.timeout(3600)]


def test_every_picture_of_a_large_archive_is_present_once(tmp_path):
    archived_with_kills(tmp_path, 2000)
