"""What all tests share: the place of the data beside the checkout, and one torchvision repair."""

import contextlib
import io
import json
import re
import signal
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from difiisr_models.compact import CompactConfig, CompactNetwork
from difiisr_models.model_loading import save_compact

REPOSITORY = Path(__file__).resolve().parent.parent


def declare_torchvision_operators() -> torch.library.Library | None:
    """Let a torchvision built for CUDA import beside a torch built for CPUs.

    Its compiled part does not load there, and its Python part stops at the import because the
    operators are unknown. No test runs these operators. For tests only: users install a pair.
    """
    try:
        built_for_cpu = "+cpu" in version("torchvision")
    except PackageNotFoundError:
        return None
    if built_for_cpu or torch.version.cuda is not None:
        return None
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


_operators = declare_torchvision_operators()  # they vanish with this object


@pytest.fixture(scope="session", autouse=True)
def _cache_of_this_run(tmp_path_factory):
    """Exported graphs go to a folder of the test run, not to the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _seeded():
    """A test draws the same numbers in each run and on each machine."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _usual_signals():
    """Processes that a test starts get signals as from a shell; a node run in here ignores them."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def difiisr(capsys):
    """Runs ``difiisr``, which is to end with ``code``; what it said: ``out`` and ``err``."""

    def run(*words, code=0):
        from difiisr_ros.cli import main

        capsys.readouterr()
        ended_with = main([*map(str, words)])
        said = capsys.readouterr()
        assert ended_with == code, said.err
        return said

    return run


@pytest.fixture
def json_of():
    """Runs ``difiisr`` with ``--json``: what it printed, whose keys docs/command_line.md names."""

    def run(*words, code=0):
        from difiisr_ros.cli import main

        verb = " ".join(words[: 2 if words[0] == "fleet" else 1])
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert main([*map(str, words), "--json"]) == code
        facts = json.loads(printed.getvalue())
        page = (REPOSITORY / "docs" / "command_line.md").read_text(encoding="utf-8")
        (row,) = re.findall(rf"^\| `{verb}`.*?\| (.*) \|$", page, re.MULTILINE)
        always, _, sometimes = row.partition("where known:")
        named = [set(re.findall(r"`(\w+)`", part)) for part in (always, sometimes)]
        assert named[0] <= facts.keys() <= named[0] | named[1]
        return facts

    return run


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real thermal images beside the checkout; skips where there is none."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no image data at {folder}")
    return folder


@pytest.fixture(scope="session")
def shared_weights(shared_data):
    """Gives the path of a published network's file beside the data; skips where it is missing."""

    def path_of(name: str) -> Path:
        path = shared_data.parent / "weights" / name
        if not path.is_file():
            pytest.skip(f"no weights at {path}")
        return path

    return path_of


@pytest.fixture(scope="session")
def tiny_network():
    """A compact network of 16 channels and one block; nobody changes it."""
    torch.manual_seed(0)
    network = CompactNetwork(CompactConfig(channels=16, blocks=1))
    network.detail_head.weight.data.normal_(std=0.05)
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_folder(tiny_network, tmp_path_factory):
    """Its weights folder."""
    path = tmp_path_factory.mktemp("weights") / "tiny"
    save_compact(tiny_network, path, {})
    return path
