"""seaweedfs, an S3 server that checks keys and permissions; `weed` comes with the `dev` extra."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.processes import MissingServerError, end_of, free_ports, running


@dataclass(frozen=True, slots=True)
class Keys:
    """What an S3 user signs with."""

    id: str
    secret: str


OWNER = Keys("AKIDOWNER", "owner-secret-word")  # may do everything
READER = Keys("AKIDREADER", "reader-secret-word")  # may read objects in `videos`, and not list it
IDENTITIES = f"""
{{"identities": [
  {{"name": "anonymous", "actions": ["Read:public"]}},
  {{"name": "owner", "actions": ["Admin", "Read", "List", "Write", "Tagging"],
    "credentials": [{{"accessKey": "{OWNER.id}", "secretKey": "{OWNER.secret}"}}]}},
  {{"name": "reader", "actions": ["Read:videos"],
    "credentials": [{{"accessKey": "{READER.id}", "secretKey": "{READER.secret}"}}]}}
]}}
"""


@dataclass(frozen=True, slots=True)
class Weed:
    """A running seaweedfs: everyone may read objects in `public`, nobody but the owner lists anything."""

    url: str

    def client(self, keys: Keys = OWNER) -> Any:
        """A boto3 client with `keys`."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id=keys.id,
            aws_secret_access_key=keys.secret,
        )

    def upload(self, folder: Path, bucket: str, prefix: str) -> str:
        """Copies the files of `folder`; its s3:// address."""
        client = self.client()
        for path in sorted(folder.iterdir()):
            client.upload_file(str(path), bucket, f"{prefix}/{path.name}")
        return f"s3://{bucket}/{prefix}"


@contextmanager
def seaweedfs(folder: Path, program: str | None = None) -> Iterator[Weed]:
    """A seaweedfs whose data lie in `folder`. Raises MissingServerError where it is not installed or does not start."""
    own = Path(sys.executable).parent
    program = program or shutil.which("weed", path=f"{own}{os.pathsep}{os.environ.get('PATH', '')}")
    if program is None:
        raise MissingServerError("seaweedfs (weed) is not installed. Install it with: make setup-dev")
    (folder / "s3.json").write_text(IDENTITIES)
    (folder / "data").mkdir(exist_ok=True)
    ports = free_ports(10)
    url = f"http://127.0.0.1:{ports[0]}"
    named = ("s3", "master", "volume", "filer", "admin")
    options = [f"-{name}.port={port}" for name, port in zip(named, ports[:5], strict=True)]
    options += [f"-{name}.port.grpc={port}" for name, port in zip(named, ports[5:], strict=True)]
    command = [program, "mini", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *options]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"]
    command += ["-master.telemetry=false", "-volume.preStopSeconds=0", f"-s3.config={folder / 's3.json'}"]
    command += [f"-{name}.localSocket={folder / name}.sock" for name in ("s3", "filer")]
    command += ["-bucket=videos,public"]
    quiet = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "S3_"))}
    try:
        with running(command, folder, f"{url}/healthz", environ={**quiet, "HOME": str(folder)}):
            server = Weed(url)
            _await_buckets(server, folder / "log")
            yield server
    finally:
        for port in ports:  # it puts these nowhere else, and leaves them where it is killed
            for left in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                left.unlink(missing_ok=True)


def _await_buckets(server: Weed, log: Path) -> None:
    """Waits for the buckets, which are made a moment after the server says that it is well."""
    from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            if {"videos", "public"} <= {bucket["Name"] for bucket in server.client().list_buckets()["Buckets"]}:
                return
        except (BotoCoreError, ClientError):
            pass
        time.sleep(0.1)
    raise MissingServerError(f"seaweedfs has not made its buckets within two minutes. Its log:\n{end_of(log)}")
