"""Is a release ready? One version everywhere; wheel and sdist build, install and run.

``python scripts/release_check.py [--tag]``; ``--tag`` also asks for a git tag of that version here.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

HOUSE = Path(__file__).parents[1]
NEEDED = (
    "difiisr_ros/sr_node.py",
    "difiisr_models/upscaler.py",
    "difiisr_training/evaluation/report.html.j2",
    ".data/data/share/difiisr_ros/package.xml",
    ".data/data/share/difiisr_ros/config/sr.yaml",
    ".data/data/share/difiisr_ros/config/models/difiisr-rt-x4/network.safetensors",
    ".data/data/share/difiisr_ros/launch/sr.launch.py",
    ".data/data/lib/difiisr_ros/sr_node",
    "LICENSE",
)
VERSIONS = {
    "setup.cfg": r"(?m)^version = (\S+)",
    "package.xml": r"<version>([^<]+)</version>",
    "CITATION.cff": r"(?m)^version: (\S+)",
}


def run(*command: str | Path, cwd: Path = HOUSE) -> str:
    """Standard output of a command; SystemExit with what it said where it fails."""
    done = subprocess.run([*map(str, command)], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """Check, and print a line for each thing that is right."""
    found = {
        name: re.search(pattern, (HOUSE / name).read_text()).group(1)
        for name, pattern in VERSIONS.items()
    }
    if len(set(found.values())) != 1:
        raise SystemExit(f"versions differ: {found}")
    version = next(iter(found.values()))
    print(f"version {version}: {', '.join(found)}")
    if "--tag" in sys.argv and version not in run("git", "tag", "--points-at", "HEAD").split():
        raise SystemExit(f"no tag {version} on this commit: git tag {version}")
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary)
        pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
        options = ("--quiet", "--no-deps", "--no-build-isolation")
        run(sys.executable, "setup.py", "-q", "sdist", "--dist-dir", out)
        (sdist,) = out.glob("*.tar.gz")
        run(*pip, "wheel", *options, "--wheel-dir", out, sdist)
        (wheel,) = out.glob("*.whl")
        names = zipfile.ZipFile(wheel).namelist()
        if missing := [n for n in NEEDED if not any(have.endswith(n) for have in names)]:
            raise SystemExit(f"{wheel.name} lacks {', '.join(missing)}")
        print(f"{sdist.name} -> {wheel.name}: {len(names)} files")
        # With this environment's own dependencies, away from the checkout.
        run(*pip, "install", *options, "--target", out / "site", wheel)
        code = (
            "import sys; sys.path.insert(0, 'site'); import difiisr_models as m; print(m.__file__);"
            "from difiisr_ros.cli import main; main(['--help'])"
        )
        said = run(sys.executable, "-c", code, cwd=out)
        if "site" not in said.splitlines()[0]:
            raise SystemExit(f"the wheel's package is not what is imported: {said}")
        if "replay" not in said:
            raise SystemExit("the installed command does not show its verbs")
        print("installed; difiisr --help runs")


if __name__ == "__main__":
    main()
