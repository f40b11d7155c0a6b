"""Training on clips: what is drawn, that it resumes to the bit, and that weights come out."""

from functools import partial

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from wave_frames import write_waves

from difiisr_models import Stream, load_upscaler
from difiisr_models.compact import CompactConfig, CompactNetwork
from difiisr_models.motion import warp
from difiisr_models.resample import downsample, pack
from difiisr_training import checkpoints
from difiisr_training.data.clips import ClipConfig, Clips
from difiisr_training.data.images import ImageSource, load_images
from difiisr_training.sequence_training import fit_detail
from difiisr_training.train import start_from

CONFIG = """
name: tiny
stills: [{folder: stills, val_share: 0.5}]
recordings: [films]
network: {channels: 8, blocks: 1, time_features: 16, recurrent: true}
clips: {lr_size: 16}
stages: [{until: 2, batch: 2, frames: 3}, {until: 4, batch: 1, frames: 4}]
optimiser: {lr: 0.001, warmup: 2}
checkpoint_every: 3
log_every: 2
validate_every: 4
"""


@pytest.fixture
def data(tmp_path):
    for name in ("a", "b", "c"):  # a sequence each
        write_waves(tmp_path / "data" / "stills" / name, 2, (280, 280))
    write_waves(tmp_path / "data" / "films" / "one", 6, slower=8)
    write_waves(tmp_path / "data" / "films" / "left_out", 6, slower=8)
    return tmp_path / "data"


def some_clips(data, lr_size=16, **fields):
    config = ClipConfig(lr_size=lr_size, left_out=("left_out",), **fields)
    load = partial(load_images, data=data)
    return Clips([ImageSource("stills")], [data / "films"], load, config, seed=1)


def test_a_clip_is_a_function_of_its_number(data):
    clips = some_clips(data)
    one, again, other = clips.draw(5, 4), clips.draw(5, 4), clips.draw(6, 4)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one.hr, other.hr)
    assert one.hr.shape == (4, 1, 64, 64)
    assert one.lr.shape == (4, 1, 16, 16)
    assert one.flow.shape == (4, 64, 64, 2)
    assert one.flow[0].abs().max() == 0


def test_clean_clips_are_what_the_camera_measures(data):
    clean = {"clean_share": 1.0, "camera_share": 0.0, "whole_share": 0.0}
    for share in (0.0, 1.0):  # made, recorded
        clip = some_clips(data, recorded_share=share, **clean).draw(0, 3)
        torch.testing.assert_close(clip.lr, downsample(pack(clip.hr)))
        assert clip.sigma == 0


def test_noise_is_told(data):
    clips = some_clips(data, clean_share=0.0, camera_share=0.0, whole_share=0.0)
    drawn = [clips.draw(k, 2) for k in range(40)]
    true = [float((c.lr - downsample(pack(c.hr))).std()) for c in drawn]
    told = [float(c.sigma) for c in drawn]
    assert 0.03 < max(true) < 0.08
    assert np.corrcoef(true, told)[0, 1] > 0.9


def test_the_flow_of_a_made_clip_explains_it(data):
    made = {"recorded_share": 0.0, "clean_share": 1.0, "object_share": 0.0}
    clips, better = some_clips(data, lr_size=40, **made), 0
    for k in range(8):
        clip = clips.draw(k, 2)
        moved, inside = warp(clip.hr[:1], clip.flow[1:])
        error, still = ((x - clip.hr[1:]).abs() * inside for x in (moved, clip.hr[:1]))
        better += bool(error.mean() <= still.mean() + 1e-4)
    assert better >= 7


def test_a_resumed_run_equals_an_uninterrupted_one(data, tmp_path, difiisr):
    config = tmp_path / "tiny.yaml"
    config.write_text(CONFIG.replace("frames: 3", "frames: 1"))
    words = ["train", config, "--data", data, "--threads", "1"]
    error = difiisr(*words, code=1).err
    assert "stages.0.frames: Input should be greater than or equal to 2" in error
    config.write_text(CONFIG)
    whole, parts, out = tmp_path / "whole", tmp_path / "parts", tmp_path / "weights"
    difiisr(*words, "--run", whole)
    for _ in range(4):  # one iteration each
        difiisr(*words, "--run", parts, "--budget", "0")
    one, other = (
        checkpoints.read_checkpoint(run / checkpoints.CHECKPOINT_NAME) for run in (whole, parts)
    )
    assert one["iteration"] == other["iteration"] == 4
    for name, value in one["network"].items():
        assert torch.equal(value, other["network"][name]), name
    assert one["network"]["stem_past.weight"].abs().max() > 0
    (scores,) = checkpoints.read_journal(whole, checkpoints.VALIDATION_NAME)
    assert scores["psnr_alone"] != scores["psnr_fidelity_1"] != scores["psnr_bicubic"]
    assert one["network"]["detail_head.weight"].abs().max() == 0  # left as it was

    checkpoints.export_run(whole, out)
    up = load_upscaler(str(out), backend="torch")
    assert up.is_recurrent
    assert up(np.full((20, 24), 7000, np.uint16), Stream()).shape == (80, 96)


def test_a_recurrent_network_begins_as_one_of_its_size_without_a_past():
    sizes = {"channels": 8, "blocks": 1, "time_features": 16}
    network, initial = (
        CompactNetwork(CompactConfig(**sizes, recurrent=recurrent)) for recurrent in (True, False)
    )
    start_from(network, initial)
    assert torch.equal(network.stem_lr.weight, initial.stem_lr.weight)
    assert not network.stem_past.weight.any()
    with pytest.raises(ValueError, match="not those of the configured network"):
        start_from(initial, CompactNetwork(CompactConfig(**sizes | {"channels": 16})))


def test_the_detail_head_follows_features_that_moved(data):
    torch.manual_seed(0)
    config = CompactConfig(channels=8, blocks=1, time_features=16, recurrent=True)
    teacher, network = CompactNetwork(config), CompactNetwork(config)
    teacher.detail_head.weight.data.normal_(std=0.05)
    network.load_state_dict(teacher.state_dict())
    network.fuse.weight.data *= 2  # the features move, the head does not know
    network.stem_lr.weight.data *= 2
    network.stem_lr.bias.data *= 2
    clips = some_clips(data, clean_share=1.0, camera_share=0.0)
    share = fit_detail(network, teacher, (clips.draw(k, 2) for k in range(6)))
    assert 0.5 < share <= 1


def test_a_teacher_gives_its_detail_to_what_is_exported(data, tmp_path, difiisr):
    config, out = tmp_path / "tiny.yaml", tmp_path / "weights"
    config.write_text(CONFIG)
    words = ["train", config, "--data", data, "--run", tmp_path / "run", "--budget", "0"]
    difiisr(*words, "--teacher", "difiisr-rt-x4", "--export", out)
    assert load_file(out / "network.safetensors")["detail_head.weight"].abs().max() > 0
