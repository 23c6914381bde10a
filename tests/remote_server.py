"""A server that speaks S3 on loopback, in its own process; and pushes that race, or are killed in the middle."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BUCKET = "caches"
DEADLINE_S = 60
# One request at a time: moto looks whether a file is there and then writes it, which S3 does at once.
SERVE = """
import sys
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
application = DomainDispatcherApplication(create_backend_app)
def careless(environ, start_response):
    environ.pop("HTTP_IF_NONE_MATCH", None)
    return application(environ, start_response)
run_simple("127.0.0.1", int(sys.argv[1]), {"strict": application, "careless": careless}[sys.argv[2]], threaded=False)
"""


@dataclass(frozen=True)
class Server:
    """Where it listens, and what it has been asked."""

    port: int
    log: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a user sets to reach it."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }

    def requests(self, method: str) -> list[str]:
        """The paths asked for with a method, in order."""
        lines = self.log.read_text().splitlines()
        return [line.split(f'"{method} ')[1].split()[0] for line in lines if f'"{method} ' in line]


@contextlib.contextmanager
def serving(log: Path, kind: Literal["strict", "careless"] = "strict") -> Iterator[Server]:
    """Serve S3 on a free port, with one empty bucket; a careless server ignores conditions, as some do."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("w") as stream:
        process = subprocess.Popen([sys.executable, "-c", SERVE, str(port), kind], stdout=stream, stderr=stream)
    try:
        server = Server(port, log)
        _make_bucket(server, process)
        yield server
    finally:
        process.kill()
        process.wait()


def _make_bucket(server: Server, process: subprocess.Popen[bytes]) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.port}/{BUCKET}", method="PUT",
        headers={"Authorization": "AWS4-HMAC-SHA256 Credential=tests/20260101/us-east-1/s3/aws4_request"},
    )  # fmt: skip
    end = time.monotonic() + DEADLINE_S
    while True:
        assert process.poll() is None, server.log.read_text()
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S):
                return
        except (urllib.error.URLError, ConnectionError):
            assert time.monotonic() < end, server.log.read_text()
            time.sleep(0.05)
