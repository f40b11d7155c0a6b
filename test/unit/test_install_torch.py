"""A machine without a GPU gets the CPU build of torch, not gigabytes of CUDA."""

import functools
import http.server
import os
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
VERSION = next(
    line.removeprefix("torch==")
    for line in (SCRIPTS / "constraints.txt").read_text().splitlines()
    if line.startswith("torch==")
)

pytestmark = pytest.mark.skipif(
    Path("/proc/driver/nvidia/version").exists(), reason="a GPU is here: it gets the CUDA build"
)


@pytest.fixture
def index(tmp_path):
    """The address of an index on this machine that has one CPU build of a torch of two lines."""
    folder = tmp_path / "simple" / "torch"
    folder.mkdir(parents=True)
    wheel = folder / f"torch-{VERSION}+cpu-py3-none-any.whl"
    info = f"torch-{VERSION}+cpu.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("torch.py", f'__version__ = "{VERSION}+cpu"\n')
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {VERSION}+cpu\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/simple"
    server.shutdown()


def test_the_cpu_build_comes_from_the_index_of_cpu_builds(tmp_path, index):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    environment = {**os.environ, "TORCH_CPU_INDEX": index}
    environment.pop("PYTHONPATH", None)
    script = [SCRIPTS / "install_torch.sh", python]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
    assert "for the CPU" in done.stdout
    asked = [python, "-c", "import torch; print(torch.__version__)"]
    found = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == f"{VERSION}+cpu"
    again = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
    assert again.stdout == ""  # what is there stays
