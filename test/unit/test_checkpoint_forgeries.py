"""Archives that torch.save would never write, and values that no network has."""

import io
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import pytest
import torch

from difiisr_models import checkpoint_reader
from difiisr_models.checkpoint import convert, unet_from_reference
from difiisr_models.checkpoint_reader import CheckpointError, read_checkpoint
from difiisr_models.parity import rule_state

VALUES = bytes(16)


class StorageReference:
    """Stands for a storage inside a pickle."""


class ForgedTensor:
    def __init__(self, shape, stride):
        self.arguments = (StorageReference(), 0, shape, stride, False, OrderedDict())

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


class Command:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


class Allocation:
    def __reduce__(self):
        return bytearray, (1 << 40,)


def write_archive(path, content, declared=4, protocol=2):
    """An archive like torch.save's, whose storage claims to have ``declared`` values."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            if isinstance(value, StorageReference):
                return ("storage", torch.FloatStorage, "0", "cpu", declared)
            return None

    index = io.BytesIO()
    Pickler(index, protocol).dump(content)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", index.getvalue())
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/data/0", VALUES)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "forged.pth"


def test_an_honest_archive_of_this_make_is_read(path):
    write_archive(path, {"module.a": ForgedTensor((4,), (1,))})
    assert torch.equal(read_checkpoint(path)["a"], torch.zeros(4))


@pytest.mark.parametrize(
    ("declared", "shape", "stride"),
    [
        (10**9, (10**9,), (1,)),  # more values than the archive holds
        (10**13, (4,), (1,)),
        (4, (10**9,), (1,)),  # a shape beyond its storage
        (4, (2**40,), (0,)),  # a shape that repeats one value
        (-4, (4,), (1,)),
    ],
)
def test_sizes_that_the_archive_does_not_hold(path, declared, shape, stride):
    write_archive(path, {"a": ForgedTensor(shape, stride)}, declared)
    with pytest.raises(CheckpointError, match=r"forged\.pth"):
        read_checkpoint(path)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_commands_are_refused_in_every_pickle_protocol(path, tmp_path, protocol):
    target = tmp_path / "made"
    write_archive(path, {"a": Command(target)}, protocol=protocol)
    with pytest.raises(CheckpointError, match=r"mkdir|STACK_GLOBAL"):
        read_checkpoint(path)
    assert not target.exists()


def test_memory_is_not_taken_for_a_pickle(path):
    write_archive(path, {"a": Allocation()})
    with pytest.raises(CheckpointError, match="bytearray"):
        read_checkpoint(path)


def test_a_directory_that_declares_more_than_the_file_has(path):
    torch.save({"a": torch.zeros(4)}, path)
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 20 : entry + 28] = (0x7FFFFFFF).to_bytes(4, "little") * 2  # both sizes
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=r"declares \d{10} bytes of content"):
        read_checkpoint(path)


def test_files_beyond_the_limit_are_not_opened(path, monkeypatch):
    torch.save({"a": torch.zeros(4)}, path)
    monkeypatch.setattr(checkpoint_reader, "MAX_FILE_BYTES", 100)
    with pytest.raises(CheckpointError, match="at most 100"):
        read_checkpoint(path)


def test_too_many_entries(path):
    torch.save({str(i): torch.zeros(1) for i in range(2001)}, path)
    with pytest.raises(CheckpointError, match="2001 entries"):
        read_checkpoint(path)


def test_files_of_an_old_torch_say_what_to_do(path):
    torch.save({"a": torch.zeros(4)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="save it again"):
        read_checkpoint(path)


def test_a_file_that_is_not_there(path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(path)


@pytest.fixture(scope="module")
def tiny_shapes():
    path = Path(__file__).parents[1] / "golden" / "parity" / "tiny_state_dict_shapes.json"
    parts = json.loads(path.read_text())
    return {part: {k: tuple(v) for k, v in shapes.items()} for part, shapes in parts.items()}


@pytest.fixture
def unet_state(tiny_shapes):
    return rule_state(tiny_shapes["unet"])


@pytest.mark.parametrize(
    "value",
    [
        torch.full((3,), torch.nan),
        torch.tensor([0.0, torch.inf, 0.0]),
        torch.zeros(3, dtype=torch.int64),
        torch.zeros(3, dtype=torch.complex64),
        torch.zeros(3).to_sparse(),
        torch.zeros(3, device="meta"),
    ],
    ids=["nan", "infinite", "integers", "complex", "sparse", "without values"],
)
def test_values_that_no_network_has(unet_state, value):
    with pytest.raises(CheckpointError, match=r"values: out\.2\.bias"):
        unet_from_reference(unet_state | {"out.2.bias": value})


def test_half_precision_files_are_read_as_float32(unet_state):
    halves = {name: value.half() for name, value in unet_state.items()}
    network = unet_from_reference(halves)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert torch.equal(network.conv_out.bias, unet_state["out.2.bias"].half().float())


def test_files_without_buffers_are_complete(unet_state):
    bare = {k: v for k, v in unet_state.items() if not k.endswith(("_index", "attn_mask"))}
    assert len(bare) < len(unet_state)
    assert unet_from_reference(bare).config == unet_from_reference(unet_state).config


def test_a_refusal_leaves_nothing_behind(tmp_path, unet_state, path):
    torch.save(unet_state, tmp_path / "unet.pth")
    write_archive(path, {"a": ForgedTensor((4,), (1,))})
    with pytest.raises(CheckpointError, match=r"forged\.pth: not a VQAutoencoder"):
        convert(tmp_path / "unet.pth", path, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["forged.pth", "unet.pth"]


def test_overwriting_replaces_the_whole_folder(tmp_path, tiny_shapes):
    sources = []
    for part in ("unet", "autoencoder"):
        sources.append(tmp_path / f"{part}.pth")
        torch.save(rule_state(tiny_shapes[part]), sources[-1])
    first = convert(*sources, tmp_path / "out")
    (tmp_path / "out" / "stale.txt").write_text("x")
    assert convert(*sources, tmp_path / "out", overwrite=True) == first
    names = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert names == ["autoencoder.safetensors", "manifest.json", "unet.safetensors"]
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
