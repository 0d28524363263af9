"""The codec on Ray Serve behind the demo page: the same files and pictures as the model itself, and its errors."""

import numpy as np
import pytest

from egic import artifact, pictures
from egic.coding.bitstream import BitstreamError
from egic.demo.session import UploadCoder
from tests.codec_models import tiny_model

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def serve(short_folder):
    pytest.importorskip("gradio")  # in the same extra as ray[serve]
    import ray

    from jobs import serve

    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=150_000_000, _temp_dir=str(short_folder))
    yield serve
    serve.serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder, tiny = tmp_path_factory.mktemp("models") / "tiny", tiny_model()
    artifact.save(folder, {"codec": tiny.codec, "orp": tiny.orp}, {})
    return folder


def test_replicas_equal_the_model(serve, model, one_thread):
    here, x = tiny_model(), np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    with serve.replicas(model, 2, "cpu", "float32", 1) as coder:
        opened = UploadCoder(coder, 256 * 256).open("a.png", pictures.write(x))
        assert opened.data == here.compress(x)
        for alpha in (0, 0.3, 1):
            assert np.array_equal(opened.at(alpha), here.decompress(opened.data, alpha))
        with pytest.raises(BitstreamError, match="^the file was made with model") as error:
            coder.decode_pictures(tiny_model(seed=1).compress(x))
        assert "\n" not in str(error.value)
    assert serve.NAME not in serve.serve.status().applications


@pytest.mark.parametrize("number, device, word", [(3, "cpu", "3 CPU"), (1, "cuda", "1 GPU")])
def test_replicas_that_the_cluster_can_never_place_are_one_line(serve, model, number, device, word):
    with pytest.raises(ValueError, match=f"need {word}"), serve.replicas(model, number, device, "float32", None):
        pass
