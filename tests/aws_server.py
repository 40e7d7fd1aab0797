"""What hands out AWS credentials where no keys lie in a file: `python tests/aws_server.py ID SECRET`.

Prints its address, then answers as a machine's metadata service (IMDSv2) and as the portal of single sign-on, until its
standard input is closed. It gives the keys named on its command line, without a session token.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

ROLE = "/latest/meta-data/iam/security-credentials/"
SIGNED_IN = "token-of-a-browser"  # what single sign-on left behind


class Handler(BaseHTTPRequestHandler):
    """Answers the questions that botocore asks."""

    keys: ClassVar[tuple[str, str]]

    def do_PUT(self) -> None:
        self.answer(200 if self.path == "/latest/api/token" else 404, "token-of-a-session")

    def do_GET(self) -> None:
        path, (key, secret) = self.path.partition("?")[0], self.keys
        if path == "/federation/credentials":
            signed_in = self.headers.get("x-amz-sso_bearer_token") == SIGNED_IN
            role = {"accessKeyId": key, "secretAccessKey": secret, "sessionToken": "", "expiration": 4102444800000}
            return self.answer(200 if signed_in else 401, json.dumps({"roleCredentials": role}))
        if self.headers.get("x-aws-ec2-metadata-token") != "token-of-a-session":
            return self.answer(401, "")
        if path == ROLE:
            return self.answer(200, "training")
        given = {"AccessKeyId": key, "SecretAccessKey": secret, "Token": "", "Expiration": "2100-01-01T00:00:00Z"}
        return self.answer(200 if path == f"{ROLE}training" else 404, json.dumps({"Code": "Success", **given}))

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *arguments: object) -> None:
        """Nothing: the tests' output is theirs."""


@contextmanager
def handing_out(key: str, secret: str) -> Iterator[str]:
    """The address of such a server, in a process of its own, stopped at the end."""
    command = [sys.executable, str(Path(__file__)), key, secret]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def main() -> None:
    """Serves the keys named on the command line."""
    Handler.keys = (sys.argv[1], sys.argv[2])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
