"""The preview shows what training sees."""

import numpy as np
import pytest
from PIL import Image

from difiisr_training.config import load_config
from difiisr_training.preview import save_preview


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data" / "frames"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(3):
        blocks = np.kron(rng.integers(0, 255, (16, 20)), np.ones((10, 10))).astype(np.uint8)
        Image.fromarray(blocks).save(folder / f"{i}.png")
    return tmp_path / "data"


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
    assert (many - few) == pytest.approx(3 * 264)


def test_cells_show_the_scene_and_its_low_resolution_pixels(data, tmp_path):
    save_preview(config(tmp_path, "{lr_size: 16}"), data, tmp_path / "p.png")
    picture = np.asarray(Image.open(tmp_path / "p.png")).astype(float)
    scene, bicubic = (picture[48:304, 8 + k * 264 :][:, :256] for k in (0, 1))
    assert np.corrcoef(scene.ravel(), bicubic.ravel())[0, 1] > 0.8
    edges = (np.diff(bicubic, axis=1) != 0).any(axis=0)
    assert edges.sum() <= 24  # 24 low-resolution pixels across, each one square


def test_the_same_configuration_gives_the_same_picture(data, tmp_path):
    for name in ("a", "b"):
        save_preview(config(tmp_path, "{lr_size: 16}"), data, tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_crops_larger_than_every_frame_are_explained(data, tmp_path):
    with pytest.raises(ValueError, match=r"224 pixels.*48.*lr_size"):
        save_preview(config(tmp_path, "{lr_size: 48}"), data, tmp_path / "p.png")
