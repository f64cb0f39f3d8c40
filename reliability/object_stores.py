"""Object stores on this machine: S3 by moto, and a proxy before it that fails.

`served` starts a server in this process; others, such as train.py, reach it by the
environment that it yields.

A bucket gs:// has no emulator that pip installs and that answers the XML API, by which
the library writes (gcp-storage-emulator answers the JSON API). That API has the
requests of S3's, with other credentials, which the proxy replaces. So moto behind it
is a double of Google's store.
"""

import contextlib
import http.client
import json
import logging
import random
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from moto.server import ThreadedMotoServer

from vdm_jax.buckets import Bucket
from vdm_jax.storage import COMMIT

BUCKET = "bucket"
CREDENTIALS = (  # moto compares no signature
    "AWS4-HMAC-SHA256 Credential=any/20260101/us-east-1/s3/aws4_request, "
    "SignedHeaders=host, Signature=0"
)


class Proxy(ThreadingHTTPServer):
    """Passes requests on to a server, and answers some with an error instead.

    fails: (method, path) -> whether this request fails.
    status: the answer to those that fail.
    """

    daemon_threads = True

    def __init__(self, port: int):
        super().__init__(("127.0.0.1", 0), _Passing)
        self.target = port
        self.fails = lambda method, path: False
        self.failed, self.status = 0, 503

    def fail_half_of_the_writes(self, seed: int = 0) -> None:
        draws = random.Random(seed)
        self.fails = lambda method, _: method != "GET" and draws.random() < 0.5


class _Passing(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Proxy

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.server.fails(self.command, urllib.parse.unquote(self.path)):
            self.server.failed += 1
            self._answer(self.server.status, {}, b"injected")
            return
        kept = {n: v for n, v in self.headers.items() if n.lower() != "authorization"}
        headers = kept | {"Authorization": CREDENTIALS}
        target = http.client.HTTPConnection("127.0.0.1", self.server.target)
        target.request(self.command, self.path, body, headers)
        answer = target.getresponse()
        self._answer(answer.status, dict(answer.getheaders()), answer.read())
        target.close()

    def _answer(self, status: int, headers: dict, body: bytes) -> None:
        skipped = (
            "content-length",
            "connection",
            "transfer-encoding",
            "date",
            "server",
        )
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in skipped:
                self.send_header(name, value)
        size = headers.get("Content-Length") if self.command == "HEAD" else len(body)
        self.send_header("Content-Length", str(size or 0))
        self.end_headers()
        with contextlib.suppress(ConnectionError):  # the client was killed
            self.wfile.write(body if self.command != "HEAD" else b"")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass  # noqa: N815

    def log_message(self, *_) -> None:
        pass


@contextlib.contextmanager
def served(folder: Path) -> Iterator[tuple[Proxy, dict[str, str]]]:
    """Serve an empty bucket; yield the proxy before it, and the environment for it."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    proxy = Proxy(port)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{proxy.server_port}"
    account = folder / "account.json"
    fields = ("client_email", "private_key", "private_key_id")
    account.write_text(
        json.dumps(
            {"gcs_base_url": url, "disable_oauth": True} | dict.fromkeys(fields, "")
        )
    )
    for path in ("moto-api/reset", BUCKET):
        method = "POST" if "/" in path else "PUT"
        request = urllib.request.Request(f"{url}/{path}", method=method)
        with urllib.request.urlopen(request):
            pass
    try:
        yield proxy, {
            "AWS_ENDPOINT_URL": url, "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_REGION": "us-east-1", "GOOGLE_SERVICE_ACCOUNT": str(account),
            "GOOGLE_ALLOW_HTTP": "true", "XDG_CACHE_HOME": str(folder / "cache"),
        }  # fmt: skip
    finally:
        proxy.shutdown()
        proxy.server_close()
        server.stop()


def step_names(address: str) -> set[str]:
    """Return the steps of a run in a bucket, saving-STEP if not committed."""
    files = [n.split("/")[1:] for n in Bucket(address).names("checkpoints/")]
    folders = {parts[0] for parts in files if len(parts) > 1}
    committed = {parts[0] for parts in files if parts[-1] == COMMIT}
    return committed | {f"saving-{name}" for name in folders - committed}
