"""The preview shows what training sees."""

from functools import partial

import numpy as np
import pytest
from PIL import Image

from difiisr_training import preview
from difiisr_training.config import load_config
from difiisr_training.data.images import load_images
from difiisr_training.preview import save_panel, save_preview


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data" / "frames"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(3):
        blocks = np.kron(rng.integers(0, 255, (16, 20)), np.ones((10, 10))).astype(np.uint8)
        Image.fromarray(blocks).save(folder / f"{i}.png")
    return partial(load_images, data=tmp_path / "data")


def config(tmp_path, crops):
    path = tmp_path / "c.yaml"
    path.write_text(f"name: x\nsources: [{{folder: frames}}]\ncrops: {crops}\n")
    return load_config(path)


def test_one_column_per_draw_of_each_degradation_in_use(data, tmp_path):
    sizes = []
    for thermal in (0, 1):
        degradation = f"{{bicubic: 1, thermal: {thermal}, second_order: 0}}"
        out = tmp_path / "new" / f"{thermal}.png"
        crops = f"{{lr_size: 16, degradation: {degradation}}}"
        save_preview(config(tmp_path, crops), data, out)
        sizes.append(Image.open(out).size)
    (few, height), (many, same) = sizes
    assert height == same
    assert (many - few) == pytest.approx(3 * 286)


def test_rows_hold_the_scene_and_its_low_resolution(data, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(preview, "save_panel", lambda *given: drawn.append(given))
    save_preview(config(tmp_path, "{lr_size: 16}"), data, tmp_path / "p.png")
    ((titles, rows, _, names),) = drawn
    assert titles[:3] == ["scene", "bicubic, 70 %", "thermal camera, 25 %"]
    assert names == ["frames"] * len(rows)
    for scene, bicubic, *others in rows:
        assert scene.shape == (96, 96)
        assert {image.shape for image in (bicubic, *others)} == {(24, 24)}
        coarse = scene.reshape(24, 4, 24, 4).mean(axis=(1, 3))
        assert np.corrcoef(coarse.ravel(), bicubic.ravel())[0, 1] > 0.9


def test_pixels_are_drawn_as_squares(tmp_path):
    checks = (np.indices((8, 8)).sum(axis=0) % 2 * 255).astype(np.uint8)
    save_panel([""], [[checks]], tmp_path / "p.png")
    picture = np.asarray(Image.open(tmp_path / "p.png").convert("L"))
    middle = picture[len(picture) // 2, 40:-40]
    assert set(middle.tolist()) == {0, 255}


def test_crops_larger_than_every_frame_are_explained(data, tmp_path):
    with pytest.raises(ValueError, match=r"224 pixels.*48.*lr_size"):
        save_preview(config(tmp_path, "{lr_size: 48}"), data, tmp_path / "p.png")
