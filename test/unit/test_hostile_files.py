"""Files that mean harm are refused in one line, or passed over; nothing waits, nothing escapes."""

import json
import os
import re
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from thermal_bags import record

from difiisr_training.data.images import list_images, read_counts

ROOT = Path(__file__).parents[2]
CONFIG = "name: {name}\nsources: [{{folder: a}}]\n"


@pytest.mark.parametrize("name", ["../../../evil", "/tmp/evil", "..", ".hidden", "a/b", "a\\0b"])
def test_a_training_run_stays_in_its_folder(tmp_path, difiisr, name):
    (tmp_path / "c.yaml").write_text(CONFIG.format(name=json.dumps(name)))
    error = difiisr("train", tmp_path / "c.yaml", "--data", tmp_path, code=1).err
    assert error.startswith("difiisr: ")
    assert "name" in error
    assert "Traceback" not in error


def bomb_png(path):
    head = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    parts = head, b"IDAT" + zlib.compress(bytes(99)), b"IEND"
    sized = (struct.pack(">I", len(p) - 4) + p + struct.pack(">I", zlib.crc32(p)) for p in parts)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(sized))


def bomb_npz(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bad.npy", bytes((1 << 28) + 1))


def test_bombs_and_pipes_among_images(tmp_path):
    Image.fromarray(np.full((20, 20), 9, np.uint8)).save(tmp_path / "good.png")
    os.mkfifo(tmp_path / "pipe.png")
    bomb_png(tmp_path / "bomb.png")
    assert [path.name for path in list_images(tmp_path)] == ["bomb.png", "good.png"]
    with pytest.raises(OSError, match=r"bomb\.png"):
        read_counts(tmp_path / "bomb.png")


def test_a_pipe_and_a_device_are_not_replaced(tmp_path, difiisr):
    os.mkfifo(tmp_path / "pipe.png")
    Image.fromarray(np.full((20, 20), 9, np.uint8)).save(tmp_path / "good.png")
    words = ("upscale", tmp_path / "good.png", tmp_path / "pipe.png", "--force")
    difiisr(*words, "--model", "bicubic", code=1)
    assert (tmp_path / "pipe.png").is_fifo()


def huge(path):
    with path.open("wb") as file:
        file.truncate(1 << 36)  # that no disk holds


def compressed_pth(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("a/data/0", bytes(10**7))


@pytest.mark.parametrize(
    ("words", "file", "write"),
    [
        ("info ~nobody/model", "", None),
        ("replay . loop --model bicubic", "loop", lambda path: path.symlink_to(path)),
        ("upscale a.jpg out --model bicubic", "a.jpg", huge),
        ("upscale b.png out --model bicubic", "b.png", os.mkfifo),
        ("train c.yaml", "c.yaml", huge),
        ("train c.yaml", "c.yaml", os.mkfifo),
        ("train-detector . --annotations a.json --out out", "a.json", huge),
        ("train-detector . --annotations a.json --out out", "a.json", os.mkfifo),
        ("info .", "manifest.json", os.mkfifo),
        ("evaluate . --out out --models safmn --weights .", "safmn_ntire23_x4.pth", b"no weights"),
        ("evaluate . --out out --models safmn --weights .", "safmn_ntire23_x4.pth", compressed_pth),
        ("evaluate . --out out --models bicubic --radiometry kelvin=1e999*counts", "", None),
        (
            "evaluate . --out out --models bicubic --metrics niqe --weights .",
            "niqe_pris_params.npz",
            b"",
        ),
        ("replay in out --model bicubic --camera c.yaml", "c.yaml", b"{a: " * 20_000),
        ("replay in out --model bicubic --calibration c.npz", "c.npz", os.mkfifo),
        ("replay in out --model bicubic --calibration c.npz", "c.npz", bomb_npz),
        ("upscale x.npy out", "x.npy", b""),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(
    tmp_path, monkeypatch, difiisr, words, file, write
):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32)).save("a.png")
    record(tmp_path / "in")
    if callable(write):
        write(tmp_path / file)
    elif write is not None:
        (tmp_path / file).write_bytes(write)
    (line,) = difiisr(*words.split(), code=1).err.splitlines()
    assert line.startswith("difiisr: ")


def test_names_that_are_not_utf8_are_printed(tmp_path):
    folder = tmp_path / os.fsdecode(b"\xff\xfe")
    folder.mkdir()
    arguments = ["replay", record(folder / "in"), folder / "out", "--model", "bicubic"]
    done = subprocess.run(
        [sys.executable, "-m", "difiisr_ros.cli", *map(os.fspath, arguments)],
        capture_output=True,
        env={**os.environ, "LC_ALL": "C.UTF-8", "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stderr
    assert b"5 of 5 frames" in done.stdout


def test_the_sros2_policy_names_what_the_launch_file_connects():
    """Structure as in sros2's policy.xsd, version 0.2.0."""
    policy = ElementTree.parse(ROOT / "config/sros2/sr_node.policy.xml").getroot()
    assert (policy.tag, policy.get("version")) == ("policy", "0.2.0")
    (profile,) = policy.findall("enclaves/enclave[@path]/profiles/profile[@ns][@node]")
    assert {entry.tag for entry in profile} == {"topics", "services"}
    allowed = {
        rule: {entry.text for entry in element}
        for element in profile
        for rule, value in element.attrib.items()
        if value == "ALLOW"
    }
    assert {"/thermal/image_raw", "/thermal/camera_info"} <= allowed["subscribe"]
    assert {"/thermal/sr", "/thermal/sr/camera_info", "/diagnostics"} <= allowed["publish"]
    assert "~/change_state" in allowed["reply"]
    assert not any(re.search(r"[*?]", name) for names in allowed.values() for name in names)
