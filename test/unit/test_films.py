"""Films are judged by what a viewer of a stream would see."""

import json

import numpy as np
import pytest
import torch
from wave_frames import save_image

from difiisr_training.degradations import bicubic, pillow_resize
from difiisr_training.evaluation import films
from difiisr_training.evaluation.peers import Safmn


def still(side=200):
    rng = np.random.default_rng(0)
    blocks = rng.integers(60, 180, (side // 8, side // 8)).astype(np.uint8)
    return pillow_resize(blocks, side, side)


def test_a_pan_moves_whole_pixels_and_stays_inside():
    image = still()
    film = films.pan_over(image, 2, 0.0, 60, side=160)  # to the right, and back
    assert {frame.shape for frame in film} == {(160, 160)}
    assert (film[1][:, :-2] == film[0][:, 2:]).all()
    assert (film[-1] != film[0]).any()


def test_a_pan_ends_one_step_before_the_still():
    image = still()
    film = films.pan_to(image, 4, (1, 3))
    assert [frame.shape for frame in film] == [image.shape] * 4
    assert (film[-1][:-1, :-3] == image[1:, 3:]).all()
    assert (film[0][:-4, :-12] == image[4:, 12:]).all()


def test_noise_is_a_share_of_the_span():
    film = [still()] * 2
    clean, noisy = films.low_resolution(film, 0), films.low_resolution(film, 2)
    difference = noisy[0].astype(float) - clean[0]
    assert difference.std() == pytest.approx(0.02 * np.ptp(film[0]), rel=0.25)
    assert (noisy[0] != noisy[1]).any()


def test_a_texture_that_sticks_to_the_screen_is_found():
    film = films.pan_over(still(), 4, 0.3, 6, side=160)
    seen = films.low_resolution(film, 0)
    stuck = 4 * np.random.default_rng(1).standard_normal((160, 160))
    plain = films.judge_film(bicubic, film, seen)
    sticky = films.judge_film(lambda lr: bicubic(lr) + stuck, film, seen)
    assert len(plain.psnr) == 6
    assert sticky.warping > 2 * plain.warping
    truth = iter(film)
    assert films.judge_film(lambda lr: next(truth), film, seen).warping == pytest.approx(1)


def test_a_ghost_costs_in_the_wake():
    film, wakes = films.with_hot_object([still()] * 6, speed=20)
    assert not wakes[0].any()
    assert wakes[3].any()
    before = []

    def ghostly(lr):
        before.append(bicubic(lr).astype(float))
        return np.mean(before[-3:], axis=0)

    seen = films.low_resolution(film, 0)
    clean, ghost = (films.judge_film(up, film, seen, wakes) for up in (bicubic, ghostly))
    assert ghost.wake < clean.wake - 6


def test_the_command_writes_what_it_found(tmp_path, difiisr, json_of):
    folder = tmp_path / "film"
    for k, frame in enumerate(films.pan_over(still(), 2, 0.0, 5, side=96)):
        save_image(folder / f"{k}.png", frame)
    out = tmp_path / "out"
    words = [folder, "--models", "bicubic,bicubic@consistency=1,safmn", "--noise", "0"]
    torch.save(Safmn().state_dict(), tmp_path / "safmn_ntire23_x4.pth")
    words += ["--weights", tmp_path, "--frames", "4", "--out", out]
    assert "bicubic@consistency=1" in difiisr("evaluate", "--video", *words).out
    written = json.loads((out / "video.json").read_text())
    assert json_of("video", *words) == written
    rows = written["films"]
    assert [len(row["psnr"]) for row in rows] == [4, 4, 4]
    assert rows[1]["mean"] > rows[0]["mean"]  # of a clean measurement, consistency knows more
    assert (out / "video.png").stat().st_size > 1000
