"""Exported networks: the scores of a test, for any number of clips, checked before a file is kept."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from configs import load
from shards.format import decode as decoded_record
from stmul import export as exporting
from stmul.__main__ import main
from stmul.config import Config
from stmul.errors import ExportError
from stmul.evaluate import Networks, evaluate, fused
from stmul.export import MOST, drawn, export, scorer_of
from stmul.loading import clip_tensors, evaluation_clips
from stmul.loading import test_views as views_of
from stmul.predict import predict
from stmul.snapshot import Origin, save_network
from stmul.stages import build
from stmul.trained import Trained, load_trained
from tests.stmul.conftest import SMALL

pytestmark = pytest.mark.timeout(900)  # a third of a minute on a quiet core, and much longer on a busy one

CPU = torch.device("cpu")
CENTRE = ("evaluate.protocol=centre", "evaluate.mirror=false")
CLASSES = ("class0", "class1", "class2")


def trained(config: Config, *, stages: tuple[str, ...] = ("joint",)) -> Trained:
    """Networks drawn at random, their normalisation moved so that scores are small and differ."""
    made = {}
    for stage in stages:
        made[stage] = build(stage, config, 3).eval()
        for name, buffer in made[stage].named_buffers():
            if name.endswith("running_sigma"):
                buffer.fill_(30.0 if name.count(".") < 2 else 2.0)
    return Trained(
        name="run-001", place="", told="epoch 1", networks=Networks(**made), classes=CLASSES, config=config, device=CPU
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A network in a file, exported both ways at the command line."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("exported")
    config = load(Config, None, [*SMALL, *CENTRE])
    network = trained(config).networks.joint
    network.class_names = CLASSES
    save_network(folder / "net.safetensors", network, Origin(dataset="drawn", split=1))
    words = ["export", "-i", str(folder / "net.safetensors"), "-o", str(folder / "a.pt2"), "-o", str(folder / "a.onnx")]
    changes = [word for change in (*SMALL, *CENTRE) if not change.startswith("network") for word in ("--set", change)]
    done = CliRunner().invoke(main, [*words, *changes])
    assert done.exit_code == 0, done.output
    assert done.output.count("of the largest score from PyTorch's at most") >= 1
    assert "rgb (clips, 3, 3, 32, 32) uint8" in done.output
    return folder


Scores = Callable[..., list[np.ndarray]]


@pytest.fixture(scope="module", params=["a.pt2", "a.onnx"])
def run(request, files) -> Scores:
    """What a file gives for RGB and flow, as another program would ask it."""
    if request.param.endswith(".pt2"):
        module = torch.export.load(files / request.param).module()
        return lambda rgb, flow: [scores.detach().numpy() for scores in module(rgb, flow)]
    session = pytest.importorskip("onnxruntime").InferenceSession(files / request.param)
    return lambda rgb, flow: session.run(["scores", "appearance", "motion"], {"rgb": rgb.numpy(), "flow": flow.numpy()})


def test_a_file_gives_the_scores_of_a_test(files, run, split):
    config = load(Config, None, [*SMALL, *CENTRE])
    one = load_trained(None, [f"experiment.pre_trained_id={files / 'net.safetensors'}", *SMALL[2:], *CENTRE])
    assert one.classes == CLASSES
    tested = evaluate(one.networks, split, one.config, device=CPU)
    for loaded in evaluation_clips(split, "test", config):
        decoded = loaded.to(CPU)
        (clip,) = decoded.clips
        ((view, side),) = views_of(config, clip.size)
        rgb, flow = clip_tensors(decoded, clip, view, size=side)
        found = run(rgb[None], flow[None])
        for name, scores_BK in zip(("joint", "appearance", "motion"), found, strict=True):
            expected = tested.heads[name][clip.record]
            assert np.abs(scores_BK[0] - expected).max() <= MOST * np.abs(tested.heads[name]).max()


def test_clips_are_scored_alike_alone_and_side_by_side(run):
    shapes = {"rgb": (3, 3, 32, 32), "flow": (3, 8, 32, 32)}
    rgb, flow = drawn(shapes, 3, "uint8")
    together = run(rgb, flow)
    assert [scores.shape for scores in together] == [(3, 3)] * 3
    for clip in range(3):
        alone = run(rgb[clip : clip + 1], flow[clip : clip + 1])
        for one, other in zip(alone, together, strict=True):
            assert np.allclose(one[0], other[clip], rtol=0, atol=1e-4 * np.abs(other).max())


def test_a_file_says_what_it_takes_and_which_classes_it_gives(files):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(files / "a.onnx")
    onnx.checker.check_model(model)
    said = {one.key: one.value for one in model.metadata_props}
    assert json.loads(said["classes"]) == list(CLASSES)
    extra = {"stmul.json": ""}
    torch.export.load(files / "a.pt2", extra_files=extra)
    told = extra["stmul.json"]
    assert json.loads(told) == json.loads(said["stmul"])
    about = json.loads(told)
    assert about["inputs"] == {"rgb": ["clips", 3, 3, 32, 32], "flow": ["clips", 3, 8, 32, 32]}
    assert (about["scores_of"], about["levels"], about["stack"]) == ("joint", "uint8", 4)
    assert (about["dataset"], about["split"]) == ("drawn", 1)


@pytest.mark.parametrize("heads", ["joint", "late fusion", "motion alone", "appearance alone"])
def test_what_is_exported_is_what_a_test_calls_so(small, split, heads):
    config = small(*CENTRE)
    one = trained(config, stages=("joint", "appearance", "motion"))
    record = decoded_record(split.read("test", 0))
    expected = predict(one.networks, CLASSES, record, config, device=CPU).heads
    scorer, name = scorer_of(one.networks, heads)
    assert name == heads
    decoded = next(iter(evaluation_clips(split, "test", config))).to(CPU)
    (clip,) = decoded.clips
    ((view, side),) = views_of(config, clip.size)
    seen = dict(zip(("rgb", "flow"), clip_tensors(decoded, clip, view, size=side), strict=True))
    with torch.inference_mode():
        scores, *_ = scorer(*(seen[name][None] for name in scorer.inputs))
    assert clip.name == record.name
    assert np.allclose(scores[0].numpy(), fused(expected)[heads], rtol=0, atol=1e-5 * np.abs(expected[heads]).max())


def test_the_first_scores_that_a_run_has_are_exported_and_others_refused(small):
    config = small()
    assert scorer_of(trained(config, stages=("appearance", "motion")).networks)[1] == "late fusion"
    assert scorer_of(trained(config, stages=("appearance",)).networks)[1] == "appearance alone"
    with pytest.raises(ExportError, match="no scores of late fusion in this run; there are those of joint"):
        scorer_of(trained(config).networks, "late fusion")


@pytest.mark.parametrize(("wrong", "kept"), [(0.5 * MOST, True), (2 * MOST, False), (float("nan"), False)])
def test_a_file_that_scores_differently_is_not_written(small, tmp_path, monkeypatch, wrong, kept):
    one = trained(small(), stages=("appearance",))
    scorer, _ = scorer_of(one.networks)

    def write(program, contract):
        def run(inputs):
            with torch.inference_mode():
                (scores,) = scorer(*inputs)
            return [scores + wrong * scores.abs().max()]

        return b"new", run

    monkeypatch.setattr(exporting, "WRITERS", {".onnx": write, ".pt2": write})
    monkeypatch.setattr(exporting, "_program", lambda scorer, inputs: None)
    path = tmp_path / "a.pt2"
    path.write_bytes(b"old")
    if kept:
        (done,) = export(one, [path], frames=2)
        assert path.read_bytes() == b"new"
        assert done.difference == pytest.approx(wrong, rel=0.05)
    else:
        with pytest.raises(ExportError, match=r"a\.pt2: not written: its scores are .+ expected at most 1e-04"):
            export(one, [path], frames=2)
        assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt2"]


def test_what_cannot_be_written_is_said_before_any_work(small, tmp_path, monkeypatch):
    one = replace(trained(small(), stages=("appearance",)), networks=Networks())  # nothing to work on
    with pytest.raises(ExportError, match=r"a\.onx: expected a name that ends in .+; did you mean \.onnx"):
        export(one, [tmp_path / "a.onx"])
    with pytest.raises(ExportError, match="no folder"):
        export(one, [tmp_path / "none" / "a.pt2"])
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"ONNX takes onnx and onnxscript: pip install 'stmul\[export\]'"):
        export(one, [tmp_path / "a.onnx"])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", ["224", "16x224", "ax3", "224x224x3"])
def test_a_size_is_two_numbers(size):
    done = CliRunner().invoke(main, ["export", "-o", "a.pt2", "--size", size])
    assert done.exit_code == 2
    assert "expected HEIGHTxWIDTH" in done.output


@pytest.mark.gpu
def test_a_program_runs_where_it_is_moved(files):
    shapes = {"rgb": (3, 3, 32, 32), "flow": (3, 8, 32, 32)}
    inputs = drawn(shapes, 2, "uint8")
    module = torch.export.load(io.BytesIO((files / "a.pt2").read_bytes())).module()
    expected = [scores.detach() for scores in module(*inputs)]
    with torch.backends.cudnn.flags(allow_tf32=False):
        found = module.to("cuda")(*(one.cuda() for one in inputs))
    for one, other in zip(found, expected, strict=True):
        assert (one.cpu() - other).abs().max() <= MOST * other.abs().max()
