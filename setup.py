"""Where the packages and the shared files lie; all else is in setup.cfg.

Neither is in pyproject.toml: the setuptools of ROS distributions needs them here.
"""

from pathlib import Path

from setuptools import find_packages, setup

NAME = "difiisr_ros"
SHARE = f"share/{NAME}"

# Installed package -> folder of the checkout.
FOLDERS = {NAME: NAME, "difiisr_models": "models", "difiisr_training": "training"}


def package_folders():
    """Every package and sub-package with the folder it lies in."""
    folders = dict(FOLDERS)
    for package, folder in FOLDERS.items():
        for name in find_packages(folder):
            folders[f"{package}.{name}"] = f"{folder}/{name.replace('.', '/')}"
    return folders


def share_files(top):
    """All files below ``top``, to be installed in the same folders below share/."""
    folders = {}
    for path in sorted(Path(top).rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            folders.setdefault(path.parent.as_posix(), []).append(path.as_posix())
    return [(f"{SHARE}/{folder}", files) for folder, files in folders.items()]


setup(
    packages=list(package_folders()),
    # colcon --symlink-install refuses a package that is mapped to a folder of its own name.
    package_dir={p: f for p, f in package_folders().items() if not f.startswith(NAME)},
    package_data={
        "difiisr_ros": ["photograph.jpg"],
        "difiisr_ros.commands": ["fleet_report.html.j2", "recorded.html.j2"],
        "difiisr_training.evaluation": ["report.html.j2"],
    },
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (SHARE, ["package.xml"]),
        (f"lib/{NAME}", ["scripts/sr_node", "scripts/sr_nodes"]),
        *share_files("launch"),
        *share_files("config"),
    ],
)
