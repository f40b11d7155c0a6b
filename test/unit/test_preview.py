"""The preview shows what training sees."""

from functools import partial

import numpy as np
from PIL import Image
from wave_frames import write_waves

from difiisr_training.config import from_dict
from difiisr_training.data.images import load_images
from difiisr_training.run_pictures import save_panel, save_preview


def test_samples_of_a_run_are_drawn_the_same_each_time(tmp_path):
    write_waves(tmp_path / "data" / "frames", 2)
    settings = {"name": "x", "sources": [{"folder": "frames"}], "crops": {"lr_size": 16}}
    load, drawn = partial(load_images, data=tmp_path / "data"), []
    for seed in (0, 0, 1):
        out = tmp_path / "new" / f"{len(drawn)}.png"
        save_preview(from_dict(settings | {"seed": seed}, "test"), load, out)
        drawn.append(np.asarray(Image.open(out)))
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()


def test_pixels_are_drawn_as_squares(tmp_path):
    checks = (np.indices((8, 8)).sum(axis=0) % 2 * 255).astype(np.uint8)
    save_panel([""], [[checks]], tmp_path / "p.png")
    picture = np.asarray(Image.open(tmp_path / "p.png").convert("L"))
    middle = picture[len(picture) // 2, 40:-40]
    assert set(middle.tolist()) == {0, 255}
