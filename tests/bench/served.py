"""What is read from afar: an epoch's videos as a split, the same for the peers, and the servers that have them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from shards.split import open_split
from shards.writer import write_split
from stmul.config import Config
from tests import http_server
from tests.bench import plain_gets, remote_peers
from tests.bench.line import Line, line
from tests.bench.measure import Progress
from tests.bench.passes import Site
from tests.bench.remote_peers import SHARDS
from tests.bench.wanted import PART, wanted_clips

VENV = Path(__file__).parents[2] / ".venv" / "bin"
BUCKET = "public"
NAME = "split1"
AHEAD = 1200  # clips that may be fetched ahead of the last one asked for


@dataclass(frozen=True, kw_only=True, slots=True)
class Served:
    """The servers, the line before them, and what a reader of each is told."""

    through: Line
    sites: Mapping[str, Site]  # by "HTTP" and "S3"; their folders are yet to be named
    used: Sequence[int]  # bytes of the frames used, of the first clips and those that may be fetched ahead
    digests: Mapping[int, str]
    bulk: tuple[int, str]  # the line's port, and the path of a large file there


def some_videos(shards: Path, folder: Path, count: int) -> None:
    """A split of the first `count` training videos of `shards`, in `SHARDS` tars of a size."""
    with open_split(shards) as split:
        per_shard = -(-count // SHARDS)

        def records(first: int) -> Iterator[tuple[str, Any]]:
            for number in range(first, min(count, first + per_shard)):
                yield split.index(PART).row(number).key, split.read(PART, number)

        write_split(
            folder,
            dataset=split.manifest.dataset,
            split=split.manifest.split,
            classes=split.manifest.classes,
            made=split.manifest.made,
            parts={PART: [records(first) for first in range(0, count, per_shard)]},
        )


@contextmanager
def served(
    shards: Path,
    folder: Path,
    config: Config,
    *,
    videos: int,
    clips: int,
    peers: Sequence[str],
    quick: bool,
    progress: Progress,
) -> Iterator[Served]:
    """The servers of `videos` videos and their line; `quick`: the tests' own server instead of nginx and seaweedfs."""
    progress(f"writing {videos} videos in {SHARDS} shards")
    some_videos(shards, folder / NAME, videos)
    with ExitStack() as stack:
        split = stack.enter_context(open_split(folder / NAME))
        wanted = wanted_clips(split, config, clips + AHEAD)
        for peer in peers:
            if peer in remote_peers.WRITTEN:
                remote_peers.write(peer, split, wanted[:videos], folder / remote_peers.WRITTEN[peer], progress)
        ports, environs, urls, others = _started(stack, folder, peers, quick=quick, progress=progress)
        through = stack.enter_context(line([ports[name] for name in ports]))
        by_name = dict(zip(ports, through.ports, strict=True))
        exact = plain_gets.exact(split, wanted)
        sites = {
            name: Site(
                url=urls[name].format(port=by_name[name]),
                peers={peer: where.format(port=by_name[name]) for peer, where in others.get(name, {}).items()},
                environ={key: value.format(port=by_name[name]) for key, value in environs[name].items()},
                config=config,
                wanted=wanted[:clips],
                exact=exact[:clips],
                epoch=videos,
                folder=folder,
            )
            for name in ports
        }
        yield Served(
            through=through,
            sites=sites,
            used=[clip.used for clip in exact],
            digests=plain_gets.digests(split, wanted[: max(CHECKED, videos if quick else 0)]),
            bulk=(by_name["HTTP"], f"{urlsplit(sites['HTTP'].url).path}/{split.manifest.parts[PART].shards[0].name}"),
        )


CHECKED = 16  # clips whose pixels are compared


def _started(
    stack: ExitStack, folder: Path, peers: Sequence[str], *, quick: bool, progress: Progress
) -> tuple[dict[str, int], dict[str, dict[str, str]], dict[str, str], dict[str, dict[str, str]]]:
    """Ports, environments, addresses of the split and of what peers read, by the kind of server; {port} stands open."""
    if quick:
        url = stack.enter_context(http_server.serving(folder)).url
        return {"HTTP": urlsplit(url).port or 0}, {"HTTP": {}}, {"HTTP": f"http://127.0.0.1:{{port}}/{NAME}"}, {}
    from tests.nginx import nginx_server
    from tests.seaweedfs import OWNER, seaweedfs

    own = folder / "servers"
    for name in ("nginx", "weed"):
        (own / name).mkdir(parents=True)
    progress("starting nginx and seaweedfs")
    nginx = stack.enter_context(nginx_server(own / "nginx"))
    (nginx.folder / NAME).symlink_to(folder / NAME)
    weed = stack.enter_context(
        seaweedfs(own / "weed", shutil.which("weed", path=f"{VENV}{os.pathsep}{os.environ.get('PATH', '')}"))
    )
    for name in (NAME, *(remote_peers.WRITTEN[peer] for peer in peers if peer in remote_peers.WRITTEN)):
        progress(f"copying {name} to seaweedfs")
        weed.upload(folder / name, BUCKET, name)
    s3 = {
        "AWS_ENDPOINT_URL": "http://127.0.0.1:{port}",
        "S3_ENDPOINT_URL": "http://127.0.0.1:{port}",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": OWNER.id,
        "AWS_SECRET_ACCESS_KEY": OWNER.secret,
    }
    return (
        {"HTTP": urlsplit(nginx.at("plain")).port or 0, "S3": urlsplit(weed.url).port or 0},
        {"HTTP": {}, "S3": s3},
        {"HTTP": f"http://127.0.0.1:{{port}}{urlsplit(nginx.at('plain')).path}/{NAME}", "S3": f"s3://{BUCKET}/{NAME}"},
        {"S3": {peer: f"s3://{BUCKET}/{name}" for peer, name in remote_peers.WRITTEN.items() if peer in peers}},
    )
