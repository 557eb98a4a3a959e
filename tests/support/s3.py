"""An S3 API on this machine, for every test."""

import os
from collections.abc import Iterator

import pytest


@pytest.fixture
def s3_api(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of moto's S3 server, with valid credentials in the environment."""
    server_module = pytest.importorskip(
        "moto.server", reason="pip install 'moto[server,s3]' brings an S3 API"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in [
        name
        for name in os.environ
        if name.lower() in ("http_proxy", "https_proxy", "aws_endpoint_url")
    ]:
        monkeypatch.delenv(name)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()
