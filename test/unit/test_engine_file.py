"""Engine files: nothing is deserialised unless all that describes the file is right."""

import dataclasses
import hashlib
import json
import os
import sys

import pytest
import torch

from difiisr_models.backends import EngineRefused, NetworkSource
from difiisr_models.backends.engine_file import (
    EngineDescription,
    Machine,
    read_engine,
    sidecar_path,
    this_machine,
    write_engine,
)
from difiisr_models.backends.tensorrt_module import import_tensorrt

MACHINE = Machine("tensorrt 10.3.0", "8.7", "Orin", "Linux aarch64")
PLAN = b"ftrt" + bytes(1000)
WEIGHTS = "a" * 64
DESCRIPTION = EngineDescription(
    MACHINE, "difiisr-rt-x4", WEIGHTS, "b" * 64, hashlib.sha256(PLAN).hexdigest(), "fp16", 2, 120,
    160, 31.5, "0.1.0",
)  # fmt: skip
COMMAND = (
    "difiisr build-engine difiisr-rt-x4 {} --input-size 120x160 --precision fp16 --batch 2 --force"
)


@pytest.fixture
def plan(tmp_path):
    path = tmp_path / "model.plan"
    write_engine(path, PLAN, DESCRIPTION)
    return path


def source(weights=WEIGHTS, precision="fp16", model="difiisr-rt-x4", device="cuda"):
    return NetworkSource(None, weights, torch.device(device), precision, model=model)


def refusal(plan, machine=MACHINE, **changes):
    with pytest.raises(EngineRefused) as caught:
        read_engine(plan, machine, source(**changes))
    return str(caught.value)


def doctor(plan, **changes):
    path = sidecar_path(plan)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_engine_of_this_machine_is_read(plan):
    assert read_engine(plan, MACHINE, source()) == (DESCRIPTION, PLAN)
    assert {path.name for path in plan.parent.iterdir()} == {"model.plan", "model.plan.json"}
    for path in plan.parent.iterdir():
        assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    ("field", "here"),
    [
        ("tensorrt", "tensorrt 10.16.2"),
        ("tensorrt", "tensorrt_rtx 10.3.0"),
        ("compute_capability", "8.9"),
        ("gpu", "NVIDIA L4"),
        ("system", "Linux x86_64"),
    ],
)
def test_an_engine_of_another_machine_is_refused(plan, field, here):
    text = refusal(plan, dataclasses.replace(MACHINE, **{field: here}))
    assert f"is {getattr(MACHINE, field)}, {here} is needed" in text
    assert COMMAND.format(plan) in text


def test_all_mismatches_are_named_at_once(plan):
    plan.write_bytes(PLAN[:-1])
    here = Machine("tensorrt 11.0", "12.0", "NVIDIA RTX", "Linux x86_64")
    text = refusal(plan, here, weights="c" * 64, precision="fp32")
    for part in (
        "its TensorRT is tensorrt 10.3.0, tensorrt 11.0 is needed",
        "its compute capability is 8.7, 12.0 is needed",
        "its GPU is Orin, NVIDIA RTX is needed",
        "its system is Linux aarch64, Linux x86_64 is needed",
        f"its weights' sha256 is {WEIGHTS}, {'c' * 64} is needed",
        "its precision is fp16, fp32 is needed",
        f"{len(PLAN) - 1} bytes have sha256",
        "--precision fp32",
    ):
        assert part in text


@pytest.mark.parametrize("content", [b"", PLAN[:100], PLAN[:-1] + b"x"])
def test_a_truncated_or_changed_plan_is_refused(plan, content):
    plan.write_bytes(content)
    text = refusal(plan)
    assert hashlib.sha256(content).hexdigest() in text
    assert hashlib.sha256(PLAN).hexdigest() in text


def test_missing_files_are_named_with_the_command(plan, tmp_path):
    other = tmp_path / "other.plan"
    text = refusal(other)
    assert f"{other} does not exist" in text
    assert f"difiisr build-engine difiisr-rt-x4 {other} --input-size HxW --precision fp16" in text
    sidecar_path(plan).unlink()
    text = refusal(plan)
    assert "model.plan.json, the description of the engine, is missing" in text
    assert f"Delete {plan}, then build it: difiisr build-engine" in text  # it would be refused


def test_problems_of_both_files_are_named_and_the_command_builds_what_is_asked_for(plan):
    plan.chmod(0o664)
    text = refusal(plan, weights="c" * 64, model="my/model", device="cuda:1")
    assert "model.plan has mode 664" in text
    assert f"its weights' sha256 is {WEIGHTS}" in text
    command = text.partition("Build it: ")[2]
    assert command.startswith("difiisr build-engine my/model ")
    assert "--input-size 120x160" in command
    assert "--device cuda:1" in command


@pytest.mark.parametrize("name", ["model.plan", "model.plan.json"])
@pytest.mark.parametrize("mode", [0o664, 0o646, 0o777])
def test_files_that_others_may_write_are_refused(plan, name, mode):
    (plan.parent / name).chmod(mode)
    assert f"{name} has mode {mode:03o}: others may write it" in refusal(plan)


@pytest.mark.parametrize("name", ["model.plan", "model.plan.json"])
def test_links_are_refused(plan, tmp_path, name):
    path = plan.parent / name
    (tmp_path / "elsewhere").mkdir()
    target = path.rename(tmp_path / "elsewhere" / name)
    path.symlink_to(target)
    assert f"is a link to {target}" in refusal(plan)


def test_files_of_another_user_are_refused(plan, monkeypatch):
    owner = plan.stat().st_uid
    if owner == 0:
        if not hasattr(os, "chown"):
            pytest.skip("needs chown")
        try:
            os.chown(plan, 12345, -1)
        except OSError:
            pytest.skip("this user may not give files away")
        owner = 12345
    else:
        monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert f"belongs to user {owner}, not to this user" in refusal(plan)


def test_a_folder_or_pipe_is_no_engine(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        assert "is not a file" in refusal(path)


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "{}", '{"format": 2}', '{"format": 1}',
        '{"format": 1, "machine": {}}', '{"format": 1, "machine": 3}', "\udcff", "[" * 200_000,
    ],
)  # fmt: skip
def test_what_is_no_sidecar_is_refused(plan, text):
    sidecar_path(plan).write_bytes(text.encode(errors="surrogateescape"))
    assert "model.plan.json" in refusal(plan)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("batch", "2"), ("batch", 0), ("height", -1), ("width", 1.5), ("width", None),
        ("plan_sha256", 3), ("machine", {"tensorrt": 1}), ("precision", ["fp16"]), ("extra", 1),
        ("batch", True),
    ],
)  # fmt: skip
def test_sidecars_with_a_doctored_field_are_refused(plan, field, value):
    doctor(plan, **{field: value})
    assert "model.plan.json" in refusal(plan)


def test_a_failed_write_leaves_the_old_engine(plan, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_engine(plan, b"new", DESCRIPTION)
    monkeypatch.undo()
    assert read_engine(plan, MACHINE, source())[1] == PLAN
    assert len(list(plan.parent.iterdir())) == 2


def test_without_tensorrt_the_text_says_what_to_install(monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=r"docs/platforms\.md"):
        import_tensorrt()
    with pytest.raises(ModuleNotFoundError):
        this_machine(None)
