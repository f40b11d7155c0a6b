"""Installs a copy of the checkout in each way that users do, offline, and looks for its files."""

import functools
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import threading
import xml.etree.ElementTree as ET
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("difiisr_ros", "difiisr_ros.commands", "difiisr_models", "difiisr_training")
BUILD_TOOLS = ("setuptools", "pkg_resources", "_distutils_hack", "wheel")
IMPORTED = (
    *("pydantic", "pydantic_core", "annotated_types"),
    *("typing_extensions", "typing_inspection"),
)

# Prints where the packages lie and what share_dir() says.
LOOK = f"""
import importlib.util as u, json
from difiisr_models.weights import share_dir
packages = {{p: u.find_spec(p).submodule_search_locations[0] for p in {PACKAGES}}}
print(json.dumps({{**packages, "share": str(share_dir())}}))
"""


@pytest.fixture
def checkout(tmp_path):
    """A copy of the files that are installed."""
    copy = tmp_path / "checkout"
    copy.mkdir()
    for path in REPOSITORY.iterdir():
        if path.name.startswith(".") or path.suffix == ".egg-info":
            continue
        if path.is_file():
            shutil.copy2(path, copy)
        elif path.name not in ("test", "out", "runs", "build", "dist", "install", "log"):
            shutil.copytree(path, copy / path.name, ignore=shutil.ignore_patterns("__pycache__"))
    new_model = copy / "config" / "models" / "a-new-model"
    new_model.mkdir(parents=True)
    (new_model / "manifest.json").write_text("{}")
    return copy


@pytest.fixture
def environment(tmp_path):
    """Variables for offline builds: of this Python its setuptools, and what is imported here."""
    tools = tmp_path / "tools"
    tools.mkdir()
    modules = [pytest.importorskip(name) for name in ("setuptools", "pydantic")]
    for site in {Path(module.__file__).parents[1] for module in modules}:
        for path in site.iterdir():
            if re.split(r"[-.]", path.name)[0] in BUILD_TOOLS + IMPORTED:
                (tools / path.name).symlink_to(path)
    hidden = ("PYTHONPATH", "AMENT_PREFIX_PATH", "COLCON_PREFIX_PATH", "VIRTUAL_ENV")
    variables = {k: v for k, v in os.environ.items() if k not in hidden}
    return {**variables, "PYTHONPATH": str(tools), "PIP_NO_INDEX": "1"}


def run(*command, **options):
    result = subprocess.run(command, capture_output=True, text=True, **options)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def installed(tmp_path, environment, *arguments, path=""):
    """Installs with pip into a new environment, and what ``LOOK`` prints there; ``path``: sites."""
    python = str(tmp_path / "venv" / "bin" / "python")
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    options = ("--no-deps", "--no-build-isolation", "--quiet", *arguments)
    run(sys.executable, "-m", "pip", "--python", python, "install", *options, env=environment)
    paths = [*map(str, tmp_path.glob(path or "none")), environment["PYTHONPATH"]]
    variables = environment | {"PYTHONPATH": os.pathsep.join(paths)}
    return json.loads(run(python, "-c", LOOK, cwd=tmp_path, env=variables))


def installed_files(top):
    files = (path for path in top.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path.relative_to(top).as_posix() for path in files}


def assert_found_by_ros(prefix, checkout):
    index = prefix / "share" / "ament_index" / "resource_index" / "packages"
    assert (index / "difiisr_ros").is_file()
    node = prefix / "lib" / "difiisr_ros" / "sr_node"
    assert os.access(node, os.X_OK)
    share = prefix / "share" / "difiisr_ros"
    for folder in ("launch", "config"):
        assert installed_files(share / folder) == installed_files(checkout / folder)
    assert (share / "package.xml").is_file()


def source_distribution(checkout, environment):
    run(sys.executable, "setup.py", "-q", "sdist", cwd=checkout, env=environment)
    (archive,) = (checkout / "dist").iterdir()
    return archive


def test_pip_install_of_the_source_distribution(tmp_path, checkout, environment):
    found = installed(tmp_path, environment, str(source_distribution(checkout, environment)))
    venv = tmp_path / "venv"
    assert found["share"] == str(venv / "share" / "difiisr_ros")
    assert all(found[package].startswith(str(venv)) for package in PACKAGES)
    assert_found_by_ros(venv, checkout)
    # With the libraries of this Python.
    sites = [*venv.glob("lib/python3*/site-packages"), *filter(None, sys.path)]
    variables = environment | {"PYTHONPATH": os.pathsep.join(map(str, sites))}
    difiisr = (venv / "bin" / "difiisr", "--help")
    assert "replay" in run(*difiisr, cwd=tmp_path, env=variables)


def test_pip_install_elsewhere_as_with_user(tmp_path, checkout, environment):
    elsewhere = ("--prefix", str(tmp_path / "local"), str(checkout))
    found = installed(tmp_path, environment, *elsewhere, path="local/lib/python3*/site-packages")
    assert found["share"] == str(tmp_path / "local" / "share" / "difiisr_ros")


def test_pip_install_editable(tmp_path, checkout, environment):
    found = installed(tmp_path, environment, "--editable", str(checkout))
    assert found["share"] == str(checkout)
    assert found["difiisr_models"] == str(checkout / "models")
    assert os.access(tmp_path / "venv" / "bin" / "difiisr", os.X_OK)


OF_THE_CHECKOUT = (
    "fill_venv.sh",
    "install_torch.sh",
    "constraints.txt",
    "constraints-kilted.txt",
    "constraints-jazzy.txt",
)


@pytest.mark.skipif(shutil.which("colcon") is None, reason="no colcon on the PATH")
@pytest.mark.parametrize("options", [[], ["--symlink-install"]], ids=["plain", "symlink"])
def test_colcon_build(tmp_path, checkout, options):
    run("colcon", "build", "--base-paths", str(checkout), *options, cwd=tmp_path)
    prefix = tmp_path / "install" / "difiisr_ros"
    (tmp_path / "look.py").write_text(LOOK)
    look = "source install/setup.bash && python3 look.py"
    found = json.loads(run("bash", "-c", look, cwd=tmp_path))
    assert found["share"] == str(prefix / "share" / "difiisr_ros")
    assert_found_by_ros(prefix, checkout)


def test_source_distribution_holds_all_that_is_installed(checkout, environment):
    with tarfile.open(source_distribution(checkout, environment)) as tar:
        packed = {name.partition("/")[2] for name in tar.getnames()}
    for folder in ("launch", "config", "resource", "scripts"):
        expected = {f"{folder}/{name}" for name in installed_files(checkout / folder)}
        assert expected - packed <= {f"scripts/{name}" for name in OF_THE_CHECKOUT}
    for folder in ("difiisr_ros", "models", "training"):
        assert {f"{folder}/{name}" for name in installed_files(checkout / folder)} <= packed
    assert {"LICENSE", "package.xml", "setup.py", "setup.cfg"} <= packed


def test_all_files_state_the_same_version():
    version = ET.parse(REPOSITORY / "package.xml").findtext("version")
    assert f"\nversion = {version}\n" in (REPOSITORY / "setup.cfg").read_text()
    assert f"\nversion: {version}\n" in (REPOSITORY / "CITATION.cff").read_text()
    assert re.search(rf"^{re.escape(version)} ", (REPOSITORY / "CHANGELOG.rst").read_text(), re.M)


def test_all_files_name_the_same_maintainer():
    found = ET.parse(REPOSITORY / "package.xml").find("maintainer")
    settings = (REPOSITORY / "setup.cfg").read_text()
    assert f"\nmaintainer = {found.text}\nmaintainer_email = {found.get('email')}\n" in settings
    assert f"`{found.get('email')}`" in (REPOSITORY / "SECURITY.md").read_text()
    assert f"name: {found.text}\n" in (REPOSITORY / "CITATION.cff").read_text()


def test_the_documentation_builds_without_a_warning_and_fetches_nothing(tmp_path):
    for name in ("material", "mkdocstrings"):
        pytest.importorskip(name, reason="needs the extra docs")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path)]
    built = subprocess.run(words, cwd=REPOSITORY, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    pages = [page.read_text(encoding="utf-8") for page in tmp_path.glob("*.html")]
    assert len(pages) > 15
    fetched = r"<(?:script|img)[^>]*src=\"?https?:|<link[^>]*stylesheet[^>]*href=\"?https?:"
    assert not [page for page in pages if re.search(fetched, page)]
    api = (tmp_path / "api.html").read_text(encoding="utf-8")
    assert 'load_upscaler" class="doc' in api


def test_extras_separate_robot_and_workstation(checkout, environment):
    run(sys.executable, "setup.py", "-q", "egg_info", cwd=checkout, env=environment)
    (info,) = checkout.glob("*.egg-info")
    base, *extras = re.split(r"^\[", (info / "requires.txt").read_text(), flags=re.M)
    names = {section.split("]")[0].split(":")[0] for section in extras} - {""}
    expected = {"ros", "images", "time", "train", "eval", "fleet", "docs", "test"}
    assert names == expected | {"onnx", "openvino", "tensorrt"}
    assert "torch" in base
    # On a robot ROS is no pip package, and an installed package must not ask for it.
    assert "rclpy" not in base
    for workstation in ("matplotlib", "pytest", "onnx", "lpips"):
        assert workstation not in base


# A machine without a GPU gets the CPU build of torch, not gigabytes of CUDA.


@pytest.fixture
def index(tmp_path):
    """Address of an index on this machine that has one CPU build of a torch of two lines; which."""
    pinned = (REPOSITORY / "scripts" / "constraints.txt").read_text()
    (version,) = re.findall(r"^torch==(\S+)", pinned, re.MULTILINE)
    folder = tmp_path / "simple" / "torch"
    folder.mkdir(parents=True)
    wheel = folder / f"torch-{version}+cpu-py3-none-any.whl"
    info = f"torch-{version}+cpu.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("torch.py", f'__version__ = "{version}+cpu"\n')
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}+cpu\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path))
    handler.log_message = lambda *_: None
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/simple", f"{version}+cpu"
    server.shutdown()


@pytest.mark.skipif(
    Path("/proc/driver/nvidia/version").exists(), reason="a GPU is here: it gets the CUDA build"
)
def test_the_cpu_build_comes_from_the_index_of_cpu_builds(tmp_path, index):
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    environment = {**os.environ, "TORCH_CPU_INDEX": index[0]}
    environment.pop("PYTHONPATH", None)
    script = [REPOSITORY / "scripts" / "install_torch.sh", python]
    done = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
    assert "for the CPU" in done.stdout
    asked = [python, "-c", "import torch; print(torch.__version__)"]
    found = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == index[1]
    again = subprocess.run(script, env=environment, capture_output=True, text=True, check=True)
    assert again.stdout == ""  # what is there stays
