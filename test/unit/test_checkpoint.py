"""Checkpoints of strangers: every style that exists is read, every hostile one is refused."""

import json
import math
import os
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from difiisr_models import WeightsError, load_upscaler
from difiisr_models.model_loading import load_parts
from difiisr_models.published.convert import (
    CheckpointError,
    convert,
    from_reference,
    load_published,
    read_checkpoint,
)
from difiisr_models.published.parity import rule_state
from difiisr_training.checkpoints import starting_weights

SHAPES = json.loads(
    (Path(__file__).parents[1] / "golden/parity/tiny_state_dict_shapes.json").read_text()
)


@pytest.fixture(scope="module")
def states():
    """Reference state dicts of a tiny UNet and autoencoder."""
    return tuple(
        rule_state({name: tuple(shape) for name, shape in SHAPES[part].items()})
        for part in ("unet", "autoencoder")
    )


@pytest.fixture(scope="module")
def files(states, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    for name, state in zip(("unet.pth", "vq.pth"), states, strict=True):
        torch.save(state, folder / name)
    return folder / "unet.pth", folder / "vq.pth"


@pytest.fixture(scope="module")
def converted(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted") / "model"
    convert(*files, folder, schedule="resshift")
    return folder


@pytest.mark.parametrize(
    "style",
    [
        lambda s: s,
        lambda s: {"state_dict": s},
        lambda s: {"params_ema": s, "params": {k: v + 1 for k, v in s.items()}},
        lambda s: {"model": {"params-ema": s}, "epoch": 3},
        lambda s: {"generator": {"net": s}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"module._orig_mod.{k}": v for k, v in s.items()}, "epoch": 3},
    ],
    ids=["bare", "state_dict", "ema first", "model", "generator", "module", "compiled"],
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


def test_missing_extra_and_misshapen_parameters_are_all_named(tmp_path, files, states):
    broken = dict(states[0])
    del broken["out.2.bias"]
    broken["surprise.weight"] = torch.zeros(3)
    broken["out.2.weight"] = torch.zeros(3, 32, 5, 5)
    torch.save(broken, tmp_path / "u.pth")
    with pytest.raises(CheckpointError) as refusal:
        convert(tmp_path / "u.pth", files[1], tmp_path / "out", schedule="sinsr")
    text = str(refusal.value)
    assert "missing: out.2.bias" in text
    assert "surprise.weight" in text
    assert "(3, 32, 5, 5)" in text
    with pytest.raises(CheckpointError, match=r"vq\.pth: not a SwinUNet"):
        convert(files[1], files[0], tmp_path / "out", schedule="sinsr")
    assert not (tmp_path / "out").exists()


def save_half(path):
    torch.save({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:1000])


def save_bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", bytes(50_000_000))


def save_endless(path):
    endless = {}
    endless["state_dict"] = endless
    torch.save(endless, path)


TWICE = {"module.a": torch.zeros(1), "a": torch.zeros(1)}
OLD = {"_use_new_zipfile_serialization": False}


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "zip"),
        (lambda path: torch.save({"a": torch.zeros(4)}, path, **OLD), "save it again"),
        (save_half, "zip"),
        (save_bomb, "declares"),
        (save_endless, "dict"),
        (lambda path: torch.save([1, 2, 3], path), "list"),
        (lambda path: torch.save({"a": "text"}, path), "str"),
        (lambda path: torch.save(TWICE, path), "twice"),
        (lambda path: torch.save({"a": torch.zeros(1).expand(1 << 40)}, path), "declare|refuses"),
        (lambda path: path.write_bytes(b""), "zip"),
        (lambda path: torch.jit.script(torch.nn.Conv2d(1, 1, 1)).save(path), "TorchScript"),
        (lambda path: None, "no such file"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, write, text):
    write(tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=text):
        read_checkpoint(tmp_path / "x.pth")


def test_the_command_converts_and_refuses_with_exit_code_1(files, tmp_path, difiisr, json_of):
    arguments = ["convert", *files, tmp_path / "m", "--schedule", "difiisr"]
    assert json_of(*arguments)["kind"] == "published"
    difiisr(*arguments, code=1)
    torch.save([1, 2, 3], tmp_path / "list.pth")
    bad = [tmp_path / "list.pth", files[1], tmp_path / "n", "--schedule", "sinsr"]
    assert "list.pth" in difiisr("convert", *bad, code=1).err
    assert not (tmp_path / "n").exists()


def test_a_converted_model_super_resolves_frames_of_any_size(converted):
    # The tile is rounded up to what the network takes: multiples of 64.
    up = load_upscaler(str(converted), tile=50, overlap=16, tile_batch=2)
    large, small = (
        (np.random.default_rng(0).random(size) * 2000 + 7000).astype(np.uint16)
        for size in ((16, 70), (16, 16))
    )
    assert up(large).shape == (64, 280)
    result = up(small)
    assert (result.shape, result.dtype) == ((64, 64), np.uint16)
    up.change(steps=2)
    assert (up(small) != result).any()


def test_a_schedule_that_the_manifest_does_not_hold_is_refused(converted, tmp_path):
    folder = shutil.copytree(converted, tmp_path / "other")
    text = (folder / "manifest.json").read_text()
    (folder / "manifest.json").write_text(text.replace('"kappa": 2.0', '"kapa": 2.0'))
    with pytest.raises(WeightsError, match="kapa"):
        load_upscaler(str(folder))


AUTHORS_CONFIG = """
diffusion:
  target: models.script_util.create_gaussian_diffusion
  params:
    sf: 4
    schedule_name: exponential
    schedule_kwargs: {power: 0.3}
    etas_end: 0.99
    steps: 4
    min_noise_level: 0.2
    kappa: 2.0
    predict_type: xstart
    timestep_respacing: ~
    scale_factor: 1.0
    normalize_input: True
    latent_flag: True
"""


def test_a_checkpoint_is_sampled_with_the_schedule_it_was_trained_with(files, tmp_path):
    config = tmp_path / "bicx4.yaml"
    config.write_text(AUTHORS_CONFIG)
    convert(*files, tmp_path / "file", schedule=str(config))
    convert(*files, tmp_path / "name", schedule="resshift-v3")
    from_file, from_name = (load_parts(str(tmp_path / x)).schedule for x in ("file", "name"))
    # sqrt(eta_1) = min(0.2 / 2, 0.2, sqrt(0.001)), then the exponential in between.
    first = math.sqrt(0.001)
    between = [first * (0.99 / first) ** ((k / 3) ** 0.3) for k in range(4)]
    np.testing.assert_allclose(np.sqrt(from_file.eta), between, rtol=1e-12)
    assert (from_file.eta == from_name.eta).all()
    up = load_upscaler(str(tmp_path / "file"), tile=64, overlap=16, steps=4)
    frame = np.full((16, 16), 100, np.uint8)
    assert up(frame).shape == (64, 64)
    with pytest.raises(ValueError, match="steps must be 1 to 4"):
        up.change(steps=5)


@pytest.mark.parametrize(
    ("schedule", "text"),
    [
        (None, "resshift, resshift-v3, sinsr, difiisr"),
        ("resshift-v2", "resshift-v2.*known"),
        ("no.yaml", "no.yaml"),
        ("eps.yaml", "epsilon"),
        ("other.yaml", "diffusion"),
    ],
)
def test_a_schedule_is_asked_for_or_refused(files, tmp_path, monkeypatch, schedule, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "eps.yaml").write_text(AUTHORS_CONFIG.replace("xstart", "epsilon"))
    (tmp_path / "other.yaml").write_text("model: {}")
    with pytest.raises((CheckpointError, FileNotFoundError), match=text):
        convert(*files, tmp_path / "out", schedule=schedule)
    assert not (tmp_path / "out").exists()


def test_a_run_refuses_a_teacher_of_another_schedule(files, tmp_path):
    convert(*files, tmp_path / "v3", schedule="resshift-v3")
    with pytest.raises(ValueError, match="4 other noise levels than the 15"):
        starting_weights(tmp_path / "v3")


class Command:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_commands_are_refused_in_every_pickle_protocol(tmp_path, protocol):
    target = tmp_path / "made"
    torch.save({"a": Command(target)}, tmp_path / "x.pth", pickle_protocol=protocol)
    with pytest.raises(CheckpointError, match="torch refuses"):
        read_checkpoint(tmp_path / "x.pth")
    assert not target.exists()


@pytest.mark.parametrize(
    "value",
    [
        torch.full((3,), torch.nan),
        torch.tensor([0.0, torch.inf, 0.0]),
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(3, dtype=torch.complex64),
        torch.zeros(3).to_sparse(),
        torch.zeros(3, device="meta"),
    ],
    ids=["nan", "infinite", "integers", "complex", "sparse", "without values"],
)
def test_values_that_no_network_has(states, value):
    with pytest.raises(CheckpointError, match=r"values: out\.2\.bias"):
        from_reference(states[0] | {"out.2.bias": value}, "unet")


def test_half_precision_files_without_buffers_are_read_as_float32(states):
    unet_state = states[0]
    buffers = ("_index", "attn_mask")
    halves = {k: v.half() for k, v in unet_state.items() if not k.endswith(buffers)}
    network = from_reference(halves, "unet")
    assert network.config == from_reference(unet_state, "unet").config
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert torch.equal(network.conv_out.bias, unet_state["out.2.bias"].half().float())


def test_only_a_folder_of_weights_is_replaced_and_only_when_asked(tmp_path, files):
    out, mine = tmp_path / "out", tmp_path / "mine"
    first = convert(*files, out, schedule="sinsr")
    (out / "stale.txt").write_text("x")
    with pytest.raises(FileExistsError):
        convert(*files, out, schedule="sinsr")
    assert convert(*files, out, schedule="sinsr", overwrite=True) == first
    names = sorted(p.name for p in out.iterdir())
    assert names == ["autoencoder.safetensors", "manifest.json", "unet.safetensors"]
    mine.mkdir()
    (mine / "thesis.txt").write_text("x")
    with pytest.raises(FileExistsError):
        convert(*files, mine, schedule="sinsr", overwrite=True)
    assert (mine / "thesis.txt").exists()
    assert {p.name for p in tmp_path.iterdir()} == {"out", "mine"}
