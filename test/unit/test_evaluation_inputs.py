import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from thermal_bags import header, image_bytes, pixels, record

from difiisr_ros import cli
from difiisr_ros.commands.evaluate_models import resolve_inputs
from difiisr_training.evaluation.inputs import Selection, finite_window, make_pair
from difiisr_training.evaluation.peers import OutputFolder

ALL = Selection()


def write_images(folder, number, dtype=np.uint8, size=(64, 80)):
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(number):
        pattern = np.random.default_rng(index).integers(0, 200, size).astype(dtype)
        Image.fromarray(pattern).save(folder / f"{index:02}.png")
    return folder


def names(chosen):
    return [name for name, _ in chosen.frames()]


def test_borders_without_a_value_are_cut_off():
    frame = np.ones((64, 80), np.float32)
    frame[:3], frame[:, -2:], frame[60:, :4] = np.nan, np.inf, np.nan
    assert frame[finite_window(frame)].shape in ((61, 74), (57, 78))
    frame[30, 40] = np.nan
    assert np.isnan(frame[finite_window(frame)]).sum() == 1


@pytest.mark.parametrize("degradation", ["thermal", "second_order"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_random_degradations_depend_on_the_frames_name_alone(degradation, dtype):
    frame = np.kron(np.random.default_rng(1).integers(20, 250, (8, 8)), np.ones((8, 8)))
    (lr, hr), (again, _), (other, _) = (
        make_pair(frame.astype(dtype), degradation, name) for name in "aab"
    )
    assert (lr.shape, hr.shape) == ((16, 16), (64, 64))
    assert lr.dtype == hr.dtype == dtype
    assert np.array_equal(lr, again)
    assert not np.array_equal(lr, other)


@pytest.mark.parametrize(
    ("selection", "wanted"),
    [
        (Selection(), list(range(12))),
        (Selection(every=5), [0, 5, 10]),
        (Selection(last=3), [9, 10, 11]),
        (Selection(every=2, last=2), [8, 10]),
        (Selection(limit=3), [0, 6, 11]),
        (Selection(limit=3, spread=False), [0, 1, 2]),
        (Selection(limit=99), list(range(12))),
    ],
)
def test_frames_are_selected(selection, wanted):
    assert selection.choose(12) == wanted


def test_images_are_named_by_their_path_and_keep_their_depth(tmp_path):
    folder = write_images(tmp_path / "a" / "sub", 2, np.uint16).parent
    (chosen,) = resolve_inputs([str(folder)], None, None, ALL)
    assert (chosen.kind, names(chosen)) == ("images", ["sub__00", "sub__01"])
    assert all(counts.dtype == np.uint16 for _, counts in chosen.frames())
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(folder / "sub" / "00.bmp")
    with pytest.raises(ValueError, match="one name"):
        names(chosen)


def test_a_held_out_set_is_found_below_the_data(tmp_path):
    write_images(tmp_path / "roadscene" / "train", 25)
    write_images(tmp_path / "mine", 2)
    held_out, mine = resolve_inputs(["roadscene/last20", "mine"], tmp_path, None, ALL)
    assert names(held_out) == [f"{i:02}" for i in range(5, 25)]
    # Whatever is selected, nothing of the training part.
    for selection, expected in (
        (Selection(every=8), ["05", "13", "21"]),
        (Selection(last=30), [f"{i:02}" for i in range(5, 25)]),
        (Selection(last=2), ["23", "24"]),
    ):
        (chosen,) = resolve_inputs(["roadscene/last20"], tmp_path, None, selection)
        assert names(chosen) == expected
    assert names(mine) == ["00", "01"]
    with pytest.raises(FileNotFoundError, match="--data"):
        resolve_inputs(["roadscene/last20"], None, None, ALL)
    with pytest.raises(FileNotFoundError, match="absent"):
        resolve_inputs(["absent"], tmp_path, None, ALL)


def test_a_recording_is_read_by_message_number_and_damaged_ones_are_left_out(tmp_path, caplog):
    record(tmp_path / "bag", frames=6, images={2: b"damaged"})
    (chosen,) = resolve_inputs([str(tmp_path / "bag")], None, None, ALL)
    assert (chosen.kind, chosen.topic) == ("bag", "/cam/image_raw")
    assert names(chosen) == ["000000", "000001", "000003", "000004", "000005"]
    assert "message 2" in caplog.text
    assert np.array_equal(dict(chosen.frames())["000003"], pixels(3))
    (sparse,) = resolve_inputs([str(tmp_path / "bag")], None, "/cam/image_raw", Selection(every=3))
    assert names(sparse) == ["000000", "000003"]
    with pytest.raises(ValueError, match="/cam/image_raw"):
        resolve_inputs([str(tmp_path / "bag")], None, "/other", ALL)


def test_frames_with_nan_are_left_out(tmp_path, caplog):
    bad = np.ones((18, 24), np.float32)
    bad[3, 3] = np.nan
    images = {
        0: image_bytes(header(0), bad, "32FC1"),
        1: image_bytes(header(1), bad[:3], "32FC1"),
    }
    record(tmp_path / "bag", frames=2, images=images)
    (chosen,) = resolve_inputs([str(tmp_path / "bag")], None, None, ALL)
    assert names(chosen) == ["000001"]
    assert "NaN" in caplog.text


def test_an_image_that_cannot_be_read_is_left_out_counted_and_named(tmp_path, capsys):
    folder, out = write_images(tmp_path / "in", 2), tmp_path / "out"
    (folder / "bad.png").write_bytes(b"no image")
    arguments = ["evaluate", str(folder), "--models", "bicubic", "--metrics", "psnr", "--no-report"]
    assert cli.main([*arguments, "--out", str(out)]) == 2
    found = json.loads((out / "results.json").read_text())
    assert (found["left_out"], found["sets"][0]["frames"]) == (1, 2)
    assert "not run: frame bad of " in capsys.readouterr().out


def test_each_recording_of_a_folder_is_a_set(tmp_path):
    record(tmp_path / "bags" / "one")
    record(tmp_path / "bags" / "two")
    found = resolve_inputs([str(tmp_path / "bags")], None, None, ALL)
    assert [Path(chosen.name).name for chosen in found] == ["one", "two"]
    with pytest.raises(ValueError, match="give each once"):
        resolve_inputs([str(tmp_path / "bags")] * 2, None, None, ALL)


def test_outputs_are_found_by_the_name_of_the_frame(tmp_path):
    method = OutputFolder.parse(f"M={write_images(tmp_path / 'out', 2)}")
    found = method.peer("a set", {"00": (16, 20), "01": (16, 20)}).outputs
    assert [path.name for path in found.values()] == ["00.png", "01.png"]
    with pytest.raises(FileNotFoundError, match=r"2 of 3 frames of s: 07, 08; it has 00, 01"):
        method.peer("s", dict.fromkeys(["00", "07", "08"], (16, 20)))
    with pytest.raises(ValueError, match=r"01.png is 80x64, wanted 80x80"):
        method.peer("s", {"00": (16, 20), "01": (20, 20)})
    write_images(tmp_path / "out" / "a-set", 1)
    assert method.peer("a set", {"00": (16, 20)}).outputs["00"].parent.name == "a-set"
    with pytest.raises(ValueError, match="NAME=DIR"):
        OutputFolder.parse("folder")
