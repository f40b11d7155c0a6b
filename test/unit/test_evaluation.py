import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from difiisr_training.evaluation.harness import (
    HELD_OUT,
    EvaluationSet,
    Judge,
    choose_images,
    evaluate,
    main,
    make_pair,
    markdown_table,
)
from difiisr_training.evaluation.metrics import psnr
from difiisr_training.evaluation.peers import Contestant

WEIGHTS = Path(__file__).parents[3] / "shared" / "weights"


@pytest.fixture
def data(tmp_path):
    """Twelve 8-bit and three 16-bit images, their sides no multiples of 4."""
    rng = np.random.default_rng(0)
    for name, dtype, number, high in (("eight", np.uint8, 12, 255), ("deep", np.uint16, 3, 9000)):
        (tmp_path / name).mkdir()
        for index in range(number):
            pixels = np.kron(rng.integers(high // 2, high, (11, 13)), np.ones((6, 6)))
            Image.fromarray(pixels.astype(dtype)).save(tmp_path / name / f"{index:02}.png")
    return tmp_path


def repeat(counts):
    return counts.repeat(4, axis=0).repeat(4, axis=1)


NEAREST = Contestant("nearest", repeat, "", 0)
BLACK = Contestant("black", lambda counts: repeat(counts) * 0, "", 0)


def test_low_resolution_is_the_antialiased_bicubic_quarter_of_the_cut_frame():
    frame = np.random.default_rng(1).integers(0, 256, (67, 130)).astype(np.uint8)
    lr, hr = make_pair(frame)
    assert hr.shape == (64, 128)
    assert np.array_equal(hr, frame[:64, :128])
    wanted = Image.fromarray(frame[:64, :128]).resize((32, 16), Image.BICUBIC)
    assert np.array_equal(lr, np.asarray(wanted))


def test_limit_takes_evenly_spaced_images_and_last_the_end_of_the_list(data):
    def names(last, limit):
        return [p.stem for p in choose_images(EvaluationSet("", "eight", last), data, limit)]

    assert names(0, None) == [f"{i:02}" for i in range(12)]
    assert names(0, 4) == ["00", "04", "07", "11"]
    assert names(3, None) == ["09", "10", "11"]
    assert names(3, 99) == ["09", "10", "11"]


def test_held_out_sets_are_the_two_tests_and_the_end_of_roadscene(shared_data):
    found = {s.name: choose_images(s, shared_data, None) for s in HELD_OUT}
    assert [len(paths) for paths in found.values()] == [130, 80, 20]
    assert found["roadscene/last20"] == sorted((shared_data / "roadscene/train").glob("*"))[-20:]


def test_every_model_is_scored_on_every_image(data):
    sets = [EvaluationSet("a", "eight"), EvaluationSet("b", "deep")]
    scores = evaluate([NEAREST, BLACK], sets, data, Judge(["psnr", "ssim"], None), limit=3)
    assert [(s.set_name, s.model) for s in scores] == [
        ("a", "nearest"), ("a", "black"), ("b", "nearest"), ("b", "black"),
    ]  # fmt: skip
    assert all(len(values) == 3 for s in scores for values in s.values.values())
    lr, hr = make_pair(np.asarray(Image.open(data / "eight" / "00.png")))
    assert scores[0].values["psnr"][0] == pytest.approx(psnr(repeat(lr), hr, 255))
    for better, worse in (scores[:2], scores[2:]):
        assert better.mean("psnr") > worse.mean("psnr")
        assert better.mean("ssim") > worse.mean("ssim")


def test_16_bit_images_are_judged_on_their_own_range(data):
    _, hr = make_pair(np.asarray(Image.open(data / "deep" / "00.png")).astype(np.uint16))
    score = Judge(["psnr"], None).score([hr + np.uint16(100)], hr)[0]
    assert score["psnr"] == pytest.approx(20 * np.log10((int(hr.max()) - int(hr.min())) / 100))


@pytest.mark.skipif(not WEIGHTS.is_dir(), reason=f"no weights at {WEIGHTS}")
def test_all_metrics_agree_which_result_is_better(shared_data):
    frame = np.asarray(Image.open(sorted((shared_data / "roadscene/train").glob("*"))[0]))
    lr, hr = make_pair(frame[:288, :288])
    judge = Judge(["psnr", "ssim", "lpips_squeeze", "niqe"], WEIGHTS)
    exact, coarse = judge.score([hr, repeat(lr)], hr)
    assert exact["lpips_squeeze"] == 0
    assert exact["psnr"] > coarse["psnr"]
    assert exact["ssim"] > coarse["ssim"]
    assert exact["lpips_squeeze"] < coarse["lpips_squeeze"]
    assert exact["niqe"] < coarse["niqe"]


def test_table_has_one_row_per_set_and_model(data):
    scores = evaluate([NEAREST, BLACK], [EvaluationSet("a", "eight")], data, Judge(["psnr"], None))
    lines = markdown_table(scores).splitlines()
    assert lines[0] == "| set | images | model | psnr | seconds |"
    assert lines[2].startswith(f"| a | 12 | nearest | {scores[0].mean('psnr'):.3f} |")
    assert len(lines) == 4


def test_command_prints_the_table_and_writes_what_is_needed_to_read_it_again(data, capsys):
    out = data / "results.json"
    arguments = ["--models", "bicubic", "--sets", "eight,deep", "--data", str(data)]
    assert main([*arguments, "--metrics", "psnr,ssim", "--limit", "2", "--out", str(out)]) == 0
    assert "| eight | 2 | bicubic |" in capsys.readouterr().out
    written = json.loads(out.read_text())
    assert [(s["set"], s["images"]) for s in written["scores"]] == [("eight", 2), ("deep", 2)]
    first = written["scores"][0]
    assert first["mean"]["psnr"] == pytest.approx(np.mean(first["per_image"]["psnr"]))
    assert written["models"] == {"bicubic": {"weights_sha256": "", "parameters": 0}}
    assert {"device", "threads", "versions", "limit"} <= written.keys()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--metrics", "mse"], "unknown metrics mse"),
        (["--metrics", "niqe"], "need the folder"),
        (["--sets", "absent"], "absent"),
        (["--models", "safmn"], "safmn_ntire23_x4.pth"),
        (["--limit", "0"], "at least 1"),
    ],
)
def test_command_says_what_is_wrong(data, capsys, changes, said):
    arguments = ["--models", "bicubic", "--sets", "eight", "--metrics", "psnr", "--data", str(data)]
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, *changes])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
