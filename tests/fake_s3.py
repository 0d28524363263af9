"""An S3 server on loopback for tests: moto, in a thread of the test's process."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote

import pytest
from pyarrow import fs

BUCKET = "bucket"


@contextmanager
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Start a server with an empty bucket and set its credentials in the environment; yields the address."""
    server_module = pytest.importorskip("moto.moto_server.threaded_moto_server")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION"):
        monkeypatch.delenv(name, raising=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        address = "http://{}:{}".format(*server.get_host_and_port())
        fs.S3FileSystem(endpoint_override=address, allow_bucket_creation=True).create_dir(BUCKET)
        yield address
    finally:
        server.stop()


def place_on(address: str, folder: str) -> str:
    """The URI of a folder in the server's bucket."""
    return f"s3://{BUCKET}/{folder}?endpoint_override={quote(address, safe='')}"
