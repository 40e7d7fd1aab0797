"""Tasks on a Ray cluster: the same results as from processes, whatever happens to workers and nodes.

The cluster is two nodes on this machine. A node on which something is otherwise gets it by its own PYTHONPATH.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from preprocess.building.engines import Died
from preprocess.building.ray_engine import ray_tasks
from preprocess.building.ray_node import Start, code_here, serve, videos_of
from preprocess.building.work import Task
from preprocess.errors import PreprocessError
from preprocess.sources.listing import Video

ROOT = Path(__file__).parents[2]
evaluate = partial(eval, "eval")  # makes the function that evaluates expressions


def video(path: Path) -> Video:
    return Video(name=path.stem, path=path, label=0, class_name="a")


# What a node does, without a cluster


def served(task: Any, start: Callable[[], Any] = evaluate, code: Any = None, seen: tuple[str, ...] = (), **more: bool):
    """What a worker process says that is sent this."""
    terms = (code_here() if code is None else code, seen, "")
    return serve(terms, Start(uuid.uuid4().hex, lambda: start), lambda: task, more.get("look", True))


def test_a_node_with_the_same_code_that_sees_everything_does_the_task(tmp_path):
    (tmp_path / "token").touch()
    assert served("6 * 7", seen=(str(tmp_path / "token"),)) == ("result", 42)


@pytest.mark.parametrize("name", ["stmul", "numpy"])
def test_a_node_with_other_code_says_which(name):
    kind, reason = served("6 * 7", code=tuple({**dict(code_here()), name: "other"}.items()))
    assert kind == "unfit"
    assert f"{name} {dict(code_here())[name]}, expected other" in reason


def test_a_node_with_other_code_unpacks_nothing():
    def unpack() -> Any:
        raise AssertionError

    assert serve(((("stmul", "other"),), (), ""), Start("", unpack), unpack, True)[0] == "unfit"


def test_a_node_that_lacks_a_folder_says_which_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr("preprocess.building.ray_node.PATIENCE_S", 0.1)
    kind, reason = served("6 * 7", seen=(str(tmp_path / "elsewhere" / "token"),))
    assert kind == "unfit"
    assert str(tmp_path / "elsewhere") in reason


def test_a_node_looks_for_the_videos_of_a_task_only_when_told(tmp_path):
    task = Task(video=video(tmp_path / "v.avi"), part="train")
    assert list(videos_of((1, "x", task, (task,)))) == [tmp_path / "v.avi"] * 2
    assert served(task, _lengths) == ("unseen", tmp_path / "v.avi")
    assert served(task, _lengths, look=False) == ("result", 5)
    (tmp_path / "v.avi").touch()
    assert served(task, _lengths) == ("result", 5)


def _lengths() -> Callable[[Task], int]:
    return lambda task: len(task.part)


def test_errors_go_home_with_their_own_type_or_at_least_in_words():
    kind, error = served("1 / 0")
    assert (kind, type(error)) == ("error", ZeroDivisionError)
    assert "Traceback" in error.__notes__[0]
    unsendable = "exec('class E(Exception):\\n def __init__(s, a, b): super().__init__(a)\\nraise E(1, 2)')"
    kind, error = served(unsendable)
    assert (kind, type(error)) == ("error", PreprocessError)
    assert "E: 1" in str(error)


# Where there is no cluster


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("127.0.0.1:{free}", r"no Ray cluster is running at 127.0.0.1:\d+ \(RAY_ADDRESS\).*ray start --head"),
        ("ray://head:10001", r"expected HOST:PORT of a cluster that this machine is part of"),
        ("local", r"expected HOST:PORT"),
        ("nonsense", r"no Ray cluster is running at nonsense"),
    ],
)
def test_an_address_without_a_cluster_is_an_error_at_once(monkeypatch, address, said):
    pytest.importorskip("ray")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))  # nobody listens there
        monkeypatch.setenv("RAY_ADDRESS", address.format(free=one.getsockname()[1]))
        start = time.monotonic()
        with pytest.raises(PreprocessError, match=said):
            list(ray_tasks(evaluate, ["1"], 1))
    assert time.monotonic() - start < 100


def test_without_ray_the_command_that_installs_it_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PreprocessError, match=r"pip install 'stmul\[ray\]'"):
        list(ray_tasks(evaluate, ["1"], 1))


# On a cluster


class Nodes:
    """A cluster on this machine, each node of it processes of its own; the command runs on the first."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})

    def add(self, **options: Any) -> Any:
        return self.cluster.add_node(num_cpus=1, **options)

    def kill(self, node: Any) -> None:
        """As if its plug was pulled."""
        self.cluster.remove_node(node, allow_graceful=False)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    pytest.importorskip("ray")
    nodes = Nodes()
    monkeypatch.setenv("RAY_ADDRESS", nodes.cluster.address)
    yield nodes
    nodes.cluster.shutdown()


def otherwise(folder: Path, **files: str) -> dict[str, str]:
    """The environment of a node whose Python finds these modules first."""
    folder.mkdir()
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    return {"PYTHONPATH": str(folder)}


CRASH = "__import__('os').kill(__import__('os').getpid(), 11)"
NODE = "__import__('ray').get_runtime_context().get_node_id()"
WITHOUT = """
import sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("preprocess"):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Without())
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_task_that_crashes_is_tried_twice_and_the_others_go_on(nodes):
    nodes.add()
    results = dict(ray_tasks(evaluate, ["1", CRASH, "2", "__import__('os')._exit(3)", "3"], 0))
    assert results == {0: 1, 1: Died("killed on a node of the cluster"), 2: 2, 3: results[1], 4: 3}
    assert list(ray_tasks(evaluate, [], 2)) == []
    with pytest.raises(ZeroDivisionError) as caught:
        list(ray_tasks(evaluate, ["1 / 0", "1"], 1))
    assert "Traceback" in caught.value.__notes__[0]
    with pytest.raises(PreprocessError, match="keep dying: 8 in a row"):
        list(ray_tasks(evaluate, [CRASH] * 20, 0))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_that_is_lost_costs_no_task_and_counts_against_none(nodes):
    tasks = [f"__import__('time').sleep(0.5) or {NODE}"] * 12
    results: dict[int, Any] = {}
    for _ in range(3):  # more often than a task may crash
        node = nodes.add()
        for position, result in ray_tasks(evaluate, tasks, 0):
            results[position] = result
            if len(set(results.values())) == 2 and node in nodes.cluster.worker_nodes:
                nodes.kill(node)
        assert sorted(results) == [*range(12)]
        assert not any(isinstance(result, Died) for result in results.values())
        assert len(set(results.values())) == 2
        results.clear()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_tasks_that_are_appended_are_done_before_those_that_wait(nodes):
    tasks, order = ["0"] * 8, []
    for position, _ in ray_tasks(evaluate, tasks, 1):
        order.append(position)
        if position == 2:
            tasks += ["0", "0"]
    assert order == [0, 1, 2, 8, 9, 3, 4, 5, 6, 7]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_no_more_tasks_run_than_were_asked_for_and_closing_stops_them(nodes, tmp_path):
    nodes.add()
    touch = "__import__('pathlib').Path({!r}).touch()"
    tasks = [touch.format(str(tmp_path / f"{n}")) + " or __import__('time').sleep(0.3)" for n in range(6)]
    for _ in ray_tasks(evaluate, tasks, 1):
        begun = len(list(tmp_path.iterdir()))
        time.sleep(0.5)
        assert len(list(tmp_path.iterdir())) == begun  # the next is handed over when this one has been taken
    sleeper = f"{touch.format(str(tmp_path / 'asleep'))} or [__import__('time').sleep(0.1) for _ in range(6000)]"
    results = ray_tasks(evaluate, ["1", sleeper, sleeper, touch.format(str(tmp_path / "never"))], 2)
    assert next(results) == (0, 1)
    start = time.monotonic()
    results.close()
    assert time.monotonic() - start < 100
    assert dict(ray_tasks(evaluate, ["2"], 0)) == {0: 2}
    assert not (tmp_path / "never").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_share_of_a_gpu_is_asked_for_and_its_lack_is_an_error(nodes):
    with pytest.raises(PreprocessError, match=r"has no GPU.*--num-gpus=N.*backend=cpu"):
        list(ray_tasks(evaluate, ["1"], 0, gpus=0.25))
    nodes.cluster.add_node(num_cpus=8, num_gpus=1)  # Ray takes our word for it
    visible = "__import__('os').environ['CUDA_VISIBLE_DEVICES']"
    assert set(dict(ray_tasks(evaluate, [visible] * 6, 0, gpus=0.25)).values()) == {"0"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_without_the_folder_the_videos_or_the_code_is_named(nodes, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "v.avi").touch()
    task, host = Task(video=video(tmp_path / "v.avi"), part="train"), socket.gethostname()
    blind = (
        "import pathlib\nseen = pathlib.Path.exists\npathlib.Path.exists = lambda p: {!r} not in str(p) and seen(p)\n"
    )

    def said(tasks: list[Any], start: Any, shared: tuple[Path, ...] = (), **files: str) -> str:
        node = nodes.add(env_vars=otherwise(tmp_path / f"node{len(list(tmp_path.iterdir()))}", **files))
        try:
            with pytest.raises(PreprocessError) as caught:
                list(ray_tasks(start, tasks, 0, shared=shared))
        finally:
            nodes.kill(node)
        assert f"node {host} (" in str(caught.value)
        return str(caught.value)

    lengths = partial(_lengths)
    assert f"does not see {tmp_path / 'v.avi'}, which is here" in said(
        [task] * 20, lengths, sitecustomize=blind.format("v.avi")
    )
    shared = (tmp_path / "out",)
    assert f"does not see {shared[0]} as the machine" in said(
        ["1"] * 20, evaluate, shared, sitecustomize=blind.format(".seen")
    )
    assert list(shared[0].iterdir()) == []
    assert "cannot run tasks: No module named 'preprocess" in said(["1"] * 20, evaluate, sitecustomize=WITHOUT)
    other = "import importlib.metadata as m\nwas = m.version\nm.version = lambda n: '0.1' if n == 'av' else was(n)\n"
    assert "has other code than" in said(["1"] * 20, evaluate, sitecustomize=other)
    (tmp_path / "v.avi").unlink()  # here, too: not a matter of nodes
    assert dict(ray_tasks(lengths, [task] * 3, 0)) == {0: 5, 1: 5, 2: 5}


# A build on it


def command(root: Path, *options: str) -> list[str]:
    sets = [
        "preprocess.rgb.short_side=96",
        "preprocess.per_shard=3",
        "preprocess.flow.backend=opencv",
        "preprocess.flow.parameters.warps=2",
    ]
    words = [sys.executable, "-m", "stmul", "preprocess", "shards", "--root", str(root), "--flow", "tvl1", *options]
    return [*words, *(word for one in sets for word in ("--set", one))]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "settings.yaml"}


def finished(out: Path) -> int:
    """How many records and shards lie there."""
    return len([path for path in out.rglob("*") if path.suffix in {".record", ".tar"}])


def until(what: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_build_on_a_cluster_that_loses_a_node_is_the_build_of_one_machine(nodes, tmp_path, video_folders):
    root = video_folders(tmp_path / "small", train=5, frames=14, width=128, height=96)
    subprocess.run(command(root, "--out", "alone", "--workers", "2"), cwd=tmp_path, check=True)
    alone = files(tmp_path / "alone/small/split1")
    assert len(alone) > 5
    node = nodes.add()
    words = command(Path("small"), "--out", "data", "--engine", "ray")  # relative to where the command runs
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / f".seen-{socket.gethostname()}-0-999999999").touch()  # of a build that was killed

    stopped = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    until(lambda: stopped.poll() is not None or finished(tmp_path / "data"))
    stopped.send_signal(signal.SIGINT)
    said = stopped.communicate(timeout=60)[1]
    assert stopped.returncode == 130, said
    assert "the same command goes on" in said
    assert not (tmp_path / "data/small/split1/manifest.json").exists()
    assert not list((tmp_path / "data").glob(".seen*"))
    assert not list((tmp_path / "data").rglob("*.partial"))

    before = finished(tmp_path / "data")
    robbed = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until(lambda: robbed.poll() is not None or finished(tmp_path / "data") > before)
    assert robbed.poll() is None, robbed.communicate()[1]
    nodes.kill(node)
    said = robbed.communicate(timeout=300)[1]
    assert robbed.returncode == 0, said
    assert files(tmp_path / "data/small/split1") == alone
    assert not (tmp_path / "data/.work").exists()
