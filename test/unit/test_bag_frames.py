"""Recordings are sources of frames like folders are."""

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore
from thermal_bags import IMAGE, kill_the_recorder, record

from difiisr_training.data.bag_frames import find_recordings, read_recordings
from difiisr_training.data.images import ImageSource, load_images

STORE = get_typestore(Stores.ROS2_KILTED)
Image = STORE.types["sensor_msgs/msg/Image"]
Header = STORE.types["std_msgs/msg/Header"]
Time = STORE.types["builtin_interfaces/msg/Time"]
DTYPES = {"mono8": "u1", "8UC1": "u1", "mono16": "u2", "16UC1": "u2", "32FC1": "f4"}


def message(pixels, encoding, big=False, padding=0):
    """An image message with ``padding`` bytes of rubbish after each row."""
    stored = pixels.astype(np.dtype(DTYPES.get(encoding, "u1")).newbyteorder(">" if big else "<"))
    rows = np.frombuffer(stored.tobytes(), np.uint8).reshape(len(pixels), -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=171)
    header = Header(stamp=Time(sec=0, nanosec=0), frame_id="thermal")
    height, width = pixels.shape[:2]
    data = rows.ravel()
    return Image(header, height, width, encoding, int(big), rows.shape[1], data)


def write(path, topics, storage=StoragePlugin.MCAP):
    """``topics``: name -> messages."""
    with Writer(path, version=9, storage_plugin=storage) as writer:
        for topic, messages in topics.items():
            connection = writer.add_connection(topic, Image.__msgtype__, typestore=STORE)
            for stamp, item in enumerate(messages):
                raw = item if isinstance(item, bytes) else None
                raw = raw or bytes(STORE.serialize_cdr(item, Image.__msgtype__))
                writer.write(connection, stamp, raw)
    return path


def frames(count, dtype=np.uint16, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 250, (20, 26)).astype(dtype) * 7 for _ in range(count)]


@pytest.mark.parametrize("storage", list(StoragePlugin))
@pytest.mark.parametrize("encoding", list(DTYPES))
def test_frames_come_back_exactly_whatever_the_layout(tmp_path, storage, encoding):
    layouts = [(False, 0), (True, 0), (False, 6), (True, 5)]  # byte order, padding of the rows
    wanted = frames(4, np.dtype(DTYPES[encoding]))
    messages = [message(f, encoding, *layout) for f, layout in zip(wanted, layouts, strict=True)]
    write(tmp_path / "bag", {"/t": messages}, storage)
    found = load_images(ImageSource("bag"), tmp_path, "train")
    assert len(found) == 4
    for a, b in zip(found, wanted, strict=True):
        assert a.dtype == np.dtype(DTYPES[encoding])
        assert (a == b).all()


def test_the_topic_is_chosen_or_asked_for(tmp_path):
    two = {
        f"/{name}": [message(f, "mono16") for f in frames(n)] for name, n in (("a", 1), ("b", 2))
    }
    write(tmp_path / "bag", two)
    assert len(load_images(ImageSource("bag", topic="/b"), tmp_path, "train")) == 2
    with pytest.raises(ValueError, match=r"say which topic.*/a, /b"):
        load_images(ImageSource("bag"), tmp_path, "train")
    with pytest.raises(ValueError, match=r"no image topic '/c'.*/a, /b"):
        load_images(ImageSource("bag", topic="/c"), tmp_path, "train")


def test_every_nth_message(tmp_path):
    wanted = frames(10)
    write(tmp_path / "bag", {"/t": [message(f, "mono16") for f in wanted]})
    found = load_images(ImageSource("bag", every=4), tmp_path, "train")
    assert [f.tolist() for f in found] == [wanted[i].tolist() for i in (0, 4, 8)]


def test_a_recording_is_a_sequence(tmp_path):
    for k in range(5):
        pixels = [np.full((20, 20), 100 * k + i, np.uint16) for i in range(4)]
        write(tmp_path / "bags" / f"drive{k}", {"/t": [message(p, "mono16") for p in pixels]})
    source = ImageSource("bags", val_share=0.4)
    train, val = (
        {int(f[0, 0]) // 100 for f in load_images(source, tmp_path, part)}
        for part in ("train", "val")
    )
    assert (len(train), len(val)) == (3, 2)
    assert not train & val


def test_recordings_are_found_as_folders_and_as_files(tmp_path):
    write(tmp_path / "whole", {"/t": [message(frames(1)[0], "mono16")]})
    write(tmp_path / "other", {"/t": [message(frames(1)[0], "mono16")]})
    loose = next((tmp_path / "other").glob("*.mcap")).rename(tmp_path / "loose.mcap")
    assert find_recordings(tmp_path) == [loose, tmp_path / "whole"]
    assert find_recordings(loose) == [loose]
    assert len(load_images(ImageSource("loose.mcap"), tmp_path, "train")) == 1


def test_damaged_messages_are_skipped_counted_and_named(tmp_path, caplog):
    good = frames(2)
    short = message(good[0], "mono16")
    short.data = short.data[:-1]
    odd = message(np.zeros((20, 20, 3)), "rgb8")
    raw = bytes(STORE.serialize_cdr(message(good[0], "mono16"), Image.__msgtype__))
    broken = [short, odd, raw[:40], b"\x00\x01\x00\x00" + b"\xff" * 60]
    write(
        tmp_path / "bag", {"/t": [message(good[0], "mono16"), *broken, message(good[1], "mono16")]}
    )
    found = load_images(ImageSource("bag"), tmp_path, "train")
    assert [f.tolist() for f in found] == [g.tolist() for g in good]
    assert "skipped 4" in caplog.text
    for number in (1, 2, 3, 4):
        assert f"skipped message {number} of" in caplog.text
    assert "'rgb8'" in caplog.text


def test_a_damaged_recording_costs_only_itself(tmp_path, caplog):
    for name in ("a", "b"):
        write(tmp_path / "bags" / name, {"/t": [message(f, "mono16") for f in frames(3)]})
    storage = next((tmp_path / "bags" / "b").glob("*.mcap"))
    storage.write_bytes(storage.read_bytes()[:100])
    found = load_images(ImageSource("bags", val_share=0.0), tmp_path, "train")
    assert len(found) == 3
    assert f"could not read {tmp_path / 'bags' / 'b'}" in caplog.text


def test_messages_in_the_log_of_a_killed_recorder_are_missed_aloud(tmp_path, caplog):
    bag = record(tmp_path / "bag", StoragePlugin.SQLITE3)
    kill_the_recorder(bag, 6)
    for path in find_recordings(bag):
        frames, skipped = read_recordings([path], IMAGE, 1)
        assert len(frames) == 3
        assert skipped == [path]
        assert "PRAGMA wal_checkpoint" in caplog.text
