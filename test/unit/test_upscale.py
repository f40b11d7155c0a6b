"""``difiisr upscale``: what a file holds is there afterwards, four times as large."""

import functools
import resource

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageOps, PngImagePlugin

from difiisr_ros import picture_files
from difiisr_ros.commands.upscale import window_to_show
from difiisr_ros.picture_files import as_frame, list_files, read, upright

WAVES = (np.add.outer(np.arange(20), 3 * np.arange(24)) % 90 + 60).astype(np.uint8)


@pytest.fixture
def upscale(difiisr):
    return functools.partial(difiisr, "upscale", "--model=bicubic", "--device=cpu")


@pytest.mark.parametrize("name", ["x.png", "x.tif", "x.npy", "x.jpg", "x.webp", "x.bmp"])
@pytest.mark.parametrize("colour", [False, True])
def test_eight_bit_files_keep_kind_and_depth(tmp_path, name, colour, upscale):
    source, target = tmp_path / name, tmp_path / "out" / name
    pixels = np.stack([WAVES, WAVES // 2, WAVES], -1) if colour else WAVES
    if name.endswith("npy"):
        np.save(source, pixels)
    else:
        Image.fromarray(pixels).save(source)
    upscale(source, tmp_path / "out")
    (result,) = read(target).images
    colour = colour or name == "x.webp"  # which knows no grey
    assert (result.pixels.dtype, result.pixels.shape[:2]) == (np.uint8, (80, 96))
    assert result.pixels.ndim == 2 + colour
    assert abs(result.pixels.mean() - pixels.mean()) < 2


@pytest.mark.parametrize("dtype", ["uint16", ">u2", "int16", "float32", "float64", "int32"])
def test_deep_tiff_pages_and_arrays_keep_their_type(tmp_path, dtype, upscale):
    signed = dtype == "int16"
    pages = [WAVES.astype(dtype) * 100 - 9000 * signed, WAVES[:18, :16].astype(dtype)]
    with tifffile.TiffWriter(tmp_path / "a.tiff") as writer:
        for page in pages:
            writer.write(page, metadata=None)
    np.save(tmp_path / "a.npy", np.stack([pages[0]] * 3))
    upscale(tmp_path / "a.tiff", tmp_path / "b.tiff")
    upscale(tmp_path / "a.npy", tmp_path / "b.npy")
    with tifffile.TiffFile(tmp_path / "b.tiff") as file:
        found = [page.asarray() for page in file.pages]
    assert [page.shape for page in found] == [(80, 96), (72, 64)]
    assert {page.dtype for page in found} == {np.dtype(dtype).newbyteorder("=")}
    assert found[0].mean() == pytest.approx(pages[0].mean(), rel=0.02)
    assert np.load(tmp_path / "b.npy").shape == (3, 80, 96)


def test_sixteen_bit_png_and_its_texts(tmp_path, upscale):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Camera", "boson")
    Image.fromarray(WAVES.astype(np.uint16) * 200).save(tmp_path / "a.png", pnginfo=texts)
    upscale(tmp_path / "a.png", tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        assert (image.mode, image.text["Camera"]) == ("I;16", "boson")
        assert np.asarray(image).max() > 20_000


def test_exif_orientation_stays_and_sizes_are_the_results(tmp_path, upscale):
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "FLIR"
    exif.get_ifd(0x8769)[0xA002] = 24
    Image.fromarray(WAVES).save(tmp_path / "a.jpg", exif=exif)
    upscale(tmp_path / "a.jpg", tmp_path / "b.jpg", "--compare")
    with Image.open(tmp_path / "b.jpg") as image:
        found = image.getexif()
        assert (found[0x0112], found[0x010F], found.get_ifd(0x8769)[0xA002]) == (6, "FLIR", 96)
        assert image.size == (96, 80)
        assert (upright(WAVES, 6) == np.rot90(WAVES, -1)).all()
        assert ImageOps.exif_transpose(image).size == (80, 96)
    with Image.open(tmp_path / "b_compare.png") as picture:
        assert picture.width > picture.height > 300


def test_places_on_the_ground_resolution_and_no_data_are_the_results(tmp_path, upscale):
    pixels = WAVES.astype(np.float32)
    pixels[:4] = -9999
    tags = [
        (33550, "d", 3, (2.0, 2.0, 0.0), False),
        (33922, "d", 6, (5.0, 1.0, 0.0, 600.0, 700.0, 0.0), False),
        (42113, "s", 6, "-9999", False),
    ]
    tifffile.imwrite(
        tmp_path / "a.tif", pixels, extratags=tags, resolution=(10, 10), description="field 7",
        metadata=None,
    )  # fmt: skip
    upscale(tmp_path / "a.tif", tmp_path / "b.tif", "--crop", "1,0,1,0")
    with tifffile.TiffFile(tmp_path / "b.tif") as file:
        page = file.pages[0]
        tags, result = page.tags, page.asarray()
        assert tags[33550].value[:2] == (0.5, 0.5)
        assert tags[33922].value == (16.0, 0.0, 0.0, 600.0, 700.0, 0.0)
        assert (page.description, tags[282].value) == ("field 7", (40, 1))
    assert result.shape == (76, 92)
    assert (result[:12] == -9999).all()
    assert (result[12:] > 50).all()  # marks do not spread


def write_video(path, frames, depth=cv2.CV_8U):
    codec = cv2.VideoWriter_fourcc(*("mp4v" if path.suffix == ".mp4" else "FFV1"))
    options = [cv2.VIDEOWRITER_PROP_IS_COLOR, 0, cv2.VIDEOWRITER_PROP_DEPTH, depth]
    size = frames[0].shape[::-1]
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, codec, 9.0, size, options)
    for frame in frames:
        writer.write(frame)
    writer.release()


@pytest.mark.parametrize("name", ["v.mkv", "v.avi", "v.mp4"])
def test_video_keeps_rate_frames_and_depth(tmp_path, name, upscale):
    write_video(tmp_path / name, [np.roll(WAVES, n, 1) for n in range(6)])
    upscale(tmp_path / name, tmp_path / "out")
    count, frames, _ = read(tmp_path / "out" / name)
    frames = list(frames)
    assert (count, len(frames), frames[0].pixels.shape[:2]) == (6, 6, (80, 96))
    assert [frame.keep["rate"] for frame in frames] == [9.0] * 6
    assert frames[3].stamp_ns == pytest.approx(3e9 / 9, abs=2e6)
    if name == "v.mkv":
        deep = [np.roll(WAVES, n, 1).astype(np.uint16) * 150 for n in range(3)]
        write_video(tmp_path / "deep.mkv", deep, cv2.CV_16U)
        upscale(tmp_path / "deep.mkv", tmp_path / "deep4.mkv")
        found = [frame.pixels for frame in read(tmp_path / "deep4.mkv").images]
        assert (found[0].dtype, found[0].shape, len(found)) == (np.uint16, (80, 96), 3)
        assert abs(found[2].mean() - deep[2].mean()) < 100


def test_what_tiff_files_say_of_their_own_size_is_not_passed_on(tmp_path, upscale):
    pytest.importorskip("imagecodecs")
    deep = np.kron(WAVES, np.ones((2, 2))).astype(np.uint16)
    tifffile.imwrite(tmp_path / "own.tif", deep, compression="lzw", photometric="minisblack")
    tifffile.imwrite(tmp_path / "lab.ome.tif", deep, ome=True, photometric="minisblack")
    for name in ("own.tif", "lab.ome.tif"):
        upscale(tmp_path / name, tmp_path / "out" / name)
        with tifffile.TiffFile(tmp_path / "out" / name) as made:
            assert made.series[0].shape == (4 * deep.shape[0], 4 * deep.shape[1])
            assert "shape" not in made.pages[0].description


def test_comparisons_of_files_that_differ_in_their_suffix_have_names_of_their_own(
    tmp_path, upscale
):
    (tmp_path / "in").mkdir()
    for suffix in ("png", "jpg"):
        Image.fromarray(WAVES).save(tmp_path / "in" / f"a.{suffix}")
    upscale(tmp_path / "in", tmp_path / "out", "--compare")
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {"a.jpg", "a.png", "a_compare.png", "a_png_compare.png"}


def test_one_bad_file_is_skipped_counted_and_named(tmp_path, capsys, json_of, upscale):
    (tmp_path / "in" / "below").mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    Image.fromarray(WAVES).save(elsewhere / "behind.png")
    Image.fromarray(WAVES).save(tmp_path / "in" / "below" / "good.png")
    (tmp_path / "in" / "bad.png").write_bytes(b"no picture")
    (tmp_path / "in" / "notes.txt").write_text("x")
    (tmp_path / "in" / "link").symlink_to(elsewhere)
    (tmp_path / "in" / "below" / "loop").symlink_to(tmp_path / "in")
    out = tmp_path / "out"
    summary = json_of("upscale", tmp_path / "in", out, "--model", "bicubic", code=2)
    assert f"skipped {tmp_path / 'in' / 'bad.png'}" in capsys.readouterr().err
    assert (summary["images"], list(summary["failed"])) == (2, [str(tmp_path / "in" / "bad.png")])
    assert summary["other_files"] == 1
    made = sorted(str(path.relative_to(out)) for path in out.rglob("*.*"))
    assert made == ["below/good.png", "link/behind.png"]
    assert "--force" in upscale(tmp_path / "in", out, code=1).err  # all are there
    upscale(tmp_path / "in", out, "--force", code=2)


def test_palette_gives_colours(tmp_path, upscale):
    np.save(tmp_path / "a.npy", WAVES.astype(np.float32) + 250)
    upscale(tmp_path / "a.npy", tmp_path / "out", "--palette", "inferno")
    with Image.open(tmp_path / "out" / "a.png") as image:
        assert (image.mode, image.size) == ("RGB", (96, 80))
        assert np.ptp(np.asarray(image), axis=(0, 1)).min() > 100


def test_radiometric_jpeg_gives_kelvin_where_its_library_is(tmp_path, monkeypatch, caplog, upscale):
    Image.fromarray(WAVES).save(tmp_path / "a.jpg")
    data = (tmp_path / "a.jpg").read_bytes()
    block = b"FLIR\0\1\0\0" + b"\0" * 24
    marked = data[:2] + b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block + data[2:]
    (tmp_path / "a.jpg").write_bytes(marked)
    stub = tmp_path / "lib" / "flyr.py"
    stub.parent.mkdir()
    monkeypatch.setitem(__import__("sys").modules, "flyr", None)
    upscale(tmp_path / "a.jpg", tmp_path / "out")
    assert "pip install flyr" in caplog.text
    monkeypatch.delitem(__import__("sys").modules, "flyr")
    stub.write_text(
        "import numpy, types\n"
        "def unpack(path): return types.SimpleNamespace(kelvin=numpy.full((20, 24), 300.25))\n"
    )
    monkeypatch.syspath_prepend(stub.parent)
    upscale(tmp_path / "a.jpg", tmp_path / "out")
    assert tifffile.imread(tmp_path / "out" / "a.tiff") == pytest.approx(300.25, abs=0.01)


def test_integers_that_16_bit_do_not_hold_are_refused():
    with pytest.raises(ValueError, match="do not fit in 16 bit"):
        as_frame(np.array([[0, 70_000]]))


def test_hidden_files_are_no_input(tmp_path):
    (tmp_path / ".a.png").touch()
    assert list_files(tmp_path) == ([], 0)


@pytest.mark.parametrize("name", ["b.png", "b_compare.png"])
def test_a_file_that_came_into_being_meanwhile_is_left_alone(tmp_path, monkeypatch, name, upscale):
    Image.fromarray(WAVES).save(tmp_path / "a.png")
    theirs = tmp_path / name

    def late(stored):
        theirs.write_bytes(b"theirs")
        return as_frame(stored)

    monkeypatch.setattr(picture_files, "as_frame", late)
    for said in ("meanwhile", "--force"):
        assert said in upscale(tmp_path / "a.png", tmp_path / "b.png", "--compare", code=1).err
    assert theirs.read_bytes() == b"theirs"
    assert {path.name for path in tmp_path.iterdir()} <= {"a.png", "b_compare.png", name}


def test_a_damaged_file_and_a_bomb_are_told_in_one_line(tmp_path, upscale):
    tifffile.imwrite(tmp_path / "a.tiff", WAVES, compression="zlib")
    data = (tmp_path / "a.tiff").read_bytes()
    (tmp_path / "a.tiff").write_bytes(data[:-20] + bytes(20))
    tifffile.imwrite(tmp_path / "b.tiff", WAVES)
    with tifffile.TiffFile(tmp_path / "b.tiff", mode="r+b") as file:
        file.pages[0].tags["ImageLength"].overwrite(2**30, dtype="I")
    for name in ("a.tiff", "b.tiff"):
        (line,) = upscale(tmp_path / name, tmp_path / "out", code=1).err.splitlines()
        assert line.startswith(f"difiisr: {tmp_path / name}: ")


@pytest.mark.parametrize("name", ["a.avi", "a.mkv", "a.mp4"])
def test_a_video_that_a_full_disk_cuts_is_none(tmp_path, name, upscale):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 255, (9, 40, 48, 3), np.uint8))
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, usual[1]))
    try:
        error = upscale(tmp_path / "a.npy", tmp_path / name, code=1).err
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert error.splitlines()[-1].startswith("difiisr: ")
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


@pytest.mark.parametrize(("left", "top"), [(30, 20), (56, 40), (12, 36)])
def test_window_is_where_the_results_differ_most(left, top):
    one = np.full((60, 80), 100.0, np.float32)
    other = one.copy()
    other[top : top + 6, left : left + 6] = 200.0
    other[:, 0] = 900.0  # a rim is not looked at
    x, y, width, height = window_to_show(one, other)
    assert 80 * x <= left
    assert left + 6 <= 80 * (x + width) <= 80
    assert 60 * y <= top
    assert top + 6 <= 60 * (y + height) <= 60
