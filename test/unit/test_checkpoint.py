"""Checkpoints of strangers: every style that exists is read, every hostile one is refused."""

import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from difiisr_models import WeightsError, load_upscaler
from difiisr_models.backends import BackendUnavailable
from difiisr_models.checkpoint import convert, load_published
from difiisr_models.checkpoint_reader import CheckpointError, read_checkpoint
from difiisr_models.parity import rule_state
from difiisr_ros import cli

SHAPES = json.loads(
    (Path(__file__).parents[1] / "golden/parity/tiny_state_dict_shapes.json").read_text()
)


def state_of(part):
    return rule_state({name: tuple(shape) for name, shape in SHAPES[part].items()})


@pytest.fixture(scope="module")
def states():
    return state_of("unet"), state_of("autoencoder")


@pytest.fixture(scope="module")
def files(states, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    for name, state in zip(("unet.pth", "vq.pth"), states, strict=True):
        torch.save(state, folder / name)
    return folder / "unet.pth", folder / "vq.pth"


@pytest.fixture(scope="module")
def converted(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "model"
    convert(*files, folder)
    return folder


@pytest.mark.parametrize(
    "style",
    [
        lambda s: s,
        lambda s: {"state_dict": s},
        lambda s: {"params_ema": s, "params": {k: v + 1 for k, v in s.items()}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}, "epoch": 3},
    ],
    ids=["bare", "state_dict", "ema first", "module", "compiled"],
)
def test_every_style_of_file_gives_the_same_parameters(tmp_path, states, style):
    torch.save(style(states[1]), tmp_path / "x.pth")
    read = read_checkpoint(tmp_path / "x.pth")
    assert read.keys() == states[1].keys()
    assert all(torch.equal(read[k], states[1][k]) for k in read)


def test_conversion_writes_hashed_weights_and_a_manifest(converted, files):
    manifest = json.loads((converted / "manifest.json").read_text())
    assert manifest["kind"] == "published"
    assert manifest["schedule"]["steps"] == 15
    assert {s["name"] for s in manifest["sources"]} == {"unet.pth", "vq.pth"}
    assert {s["bytes"] for s in manifest["sources"]} == {f.stat().st_size for f in files}
    unet, autoencoder, _ = load_published(converted)
    assert sum(p.numel() for p in unet.parameters()) == manifest["parameters"]["unet"]
    assert not any(p.requires_grad for p in autoencoder.parameters())


def test_a_changed_byte_is_noticed_at_loading(converted, tmp_path):
    import shutil

    shutil.copytree(converted, tmp_path / "m")
    path = tmp_path / "m" / "unet.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(WeightsError, match="sha256"):
        load_upscaler(str(tmp_path / "m"))


def test_missing_extra_and_misshapen_parameters_are_all_named(tmp_path, files, states):
    broken = dict(states[0])
    del broken["out.2.bias"]
    broken["surprise.weight"] = torch.zeros(3)
    broken["out.2.weight"] = torch.zeros(3, 32, 5, 5)
    torch.save(broken, tmp_path / "u.pth")
    with pytest.raises(CheckpointError) as refusal:
        convert(tmp_path / "u.pth", files[1], tmp_path / "out")
    text = str(refusal.value)
    assert "missing: out.2.bias" in text
    assert "surprise.weight" in text
    assert "(3, 32, 5, 5)" in text
    assert not (tmp_path / "out").exists()


def test_swapped_files_are_told_apart(files, tmp_path):
    with pytest.raises(CheckpointError, match="autoencoder"):
        convert(files[1], files[0], tmp_path / "out")


def test_an_existing_folder_is_kept(converted, files, tmp_path):
    with pytest.raises(FileExistsError):
        convert(*files, converted)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(FileExistsError):
        convert(*files, tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.txt").exists()


class Payload:
    def __reduce__(self):
        return (os.system, ("touch PWNED",))


def write_zip(path, index, extra=b""):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", index)
        archive.writestr("archive/data/0", extra)


def hostile_files(folder, states):
    """name -> (path, what the refusal must say)."""
    made = {}

    def new(name):
        return folder / f"{name}.pth"

    torch.save({"a": Payload()}, new("payload"))
    made["payload"] = "system"
    new("plain_pickle").write_bytes(pickle.dumps({"a": Payload()}))
    made["plain_pickle"] = "zip"
    torch.save(states[1], new("truncated"))
    whole = new("truncated").read_bytes()
    new("truncated").write_bytes(whole[: len(whole) // 2])
    made["truncated"] = "zip"
    with zipfile.ZipFile(new("bomb"), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(50_000_000))
    made["bomb"] = "declares"
    write_zip(new("garbage"), b"\x80\x02\xff\xff not a pickle")
    made["garbage"] = "damaged|refuses"
    torch.save([1, 2, 3], new("list"))
    made["list"] = "list"
    endless = {}
    endless["state_dict"] = endless
    torch.save(endless, new("endless"))
    made["endless"] = "dict"
    write_zip(new("encrypted"), b"\x80\x02}.")
    content = bytearray(new("encrypted").read_bytes())
    for header, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(header) + flags] |= 1
    new("encrypted").write_bytes(content)
    made["encrypted"] = "encrypted"
    torch.save({"a": "text"}, new("text"))
    made["text"] = "str"
    torch.save({"module.a": torch.zeros(1), "a": torch.zeros(1)}, new("twice"))
    made["twice"] = "twice"
    torch.save({"huge": torch.zeros(1).expand(1 << 40)}, new("huge"))
    made["huge"] = "declare|refuses"
    new("empty").write_bytes(b"")
    made["empty"] = "zip"
    return made


HOSTILE = ("payload", "plain_pickle", "truncated", "bomb", "garbage", "list", "text", "twice",
           "huge", "empty", "endless", "encrypted")  # fmt: skip


@pytest.fixture(scope="module")
def hostile(states, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    return folder, hostile_files(folder, states)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_and_run_nothing(hostile, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    folder, expected = hostile
    with pytest.raises(CheckpointError, match=expected[name]):
        read_checkpoint(folder / f"{name}.pth")
    assert not (tmp_path / "PWNED").exists()


def test_old_torch_is_not_trusted(files, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.5.1+cu121")
    with pytest.raises(CheckpointError, match=r"2\.6.*2\.5\.1"):
        read_checkpoint(files[0])


def test_the_command_converts_and_refuses_with_exit_code_2(files, hostile, tmp_path, capsys):
    arguments = ["convert", *map(str, files), str(tmp_path / "m")]
    assert cli.main(arguments) == 0
    assert cli.main(arguments) == 2
    bad = [str(hostile[0] / "payload.pth"), str(files[1]), str(tmp_path / "n")]
    assert cli.main(["convert", *bad]) == 2
    assert "payload.pth" in capsys.readouterr().err
    assert not (tmp_path / "n").exists()


@pytest.mark.parametrize("size", [(16, 16), (61, 83)])
def test_a_converted_model_super_resolves_frames_of_any_size(converted, size):
    frame = (np.random.default_rng(0).random(size) * 2000 + 7000).astype(np.uint16)
    # The tile is rounded up to what the network takes: multiples of 64.
    up = load_upscaler(str(converted), tile=50, overlap=16, tile_batch=2)
    sr = up(frame)
    assert sr.shape == (4 * size[0], 4 * size[1])
    assert sr.dtype == np.uint16
    np.testing.assert_array_equal(sr, up(frame))


@pytest.mark.parametrize("value", [0, 20000, 65535])
def test_flat_frames_are_never_black_or_nan(converted, value):
    """float32 frames: nothing hides behind a cast, and the consistency step holds the level."""
    up = load_upscaler(str(converted), tile=64, overlap=16)
    sr = up(np.full((64, 64), value, np.float32))
    assert np.isfinite(sr).all()
    assert abs(float(sr.mean()) - value) < 8


def test_another_schedule_than_the_published_one_is_refused(converted, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "other")
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"kappa": 2.0', '"kappa": 1.0'))
    with pytest.raises(WeightsError, match="kappa"):
        load_upscaler(str(folder))


def test_an_engine_asked_for_is_not_passed_over_in_silence(converted):
    up = load_upscaler(str(converted), engine="some.plan")
    assert up.passed_over == (("tensorrt", "the published model always runs in torch"),)
    with pytest.raises(BackendUnavailable, match=r"some\.plan"):
        load_upscaler(str(converted), engine="some.plan", engine_mismatch="fail")


def test_a_respaced_schedule_runs(converted):
    frame = (np.random.default_rng(0).random((64, 64)) * 255).astype(np.uint8)
    one = load_upscaler(str(converted))(frame)
    many = load_upscaler(str(converted), steps=3)(frame)
    assert many.shape == one.shape
    assert (many != one).any()
