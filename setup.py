"""Metadata lives here, not in pyproject.toml: the setuptools of ROS distributions needs it so."""

from pathlib import Path

from setuptools import find_packages, setup

NAME = "difiisr_ros"
SHARE = f"share/{NAME}"

# Installed package -> folder of the checkout.
FOLDERS = {NAME: NAME, "difiisr_models": "models", "difiisr_training": "training"}

EXTRAS = {
    # On a robot ROS itself comes from its distribution; these wheels serve a bare workstation.
    "ros": [
        f"{package}; sys_platform == 'linux' and platform_machine == 'x86_64'"
        for package in (
            "ros-rclpy[fastrtps]",
            "ros-builtin-interfaces",
            "ros-diagnostic-msgs",
            "ros-lifecycle-msgs",
            "ros-rcl-interfaces",
            "ros-sensor-msgs",
            "ros-std-msgs",
            "ros-std-srvs",
        )
    ],
    # Images and videos in files: upscale, demo.
    "images": ["flyr", "matplotlib", "opencv-python-headless", "pillow", "tifffile"],
    # The motion of the scene, for recurrent models and their training.
    "time": ["opencv-python-headless"],
    "train": [
        "accelerate",
        "matplotlib",
        "pyyaml",
        "scikit-image",
        "scipy>=1.15",
        "segment-anything",
        "torchvision",
    ],
    "eval": [
        "jinja2",
        "lpips",
        "matplotlib",
        "pandas",
        "pycocotools",
        "scikit-image",
        "scipy>=1.15",
        "spandrel",
        "tabulate",
        "torchmetrics",
        "transformers",
    ],
    "fleet": ["fsspec", "jinja2", "matplotlib", "pandas", "pillow", "pyarrow", "ray[client]>=2.50"],
    "docs": ["mkdocs<2", "mkdocs-material<10", "mkdocstrings[python]<2"],
    "onnx": ["onnx", "onnxruntime", "onnxscript"],
    "openvino": ["onnx", "onnxruntime", "onnxscript", "openvino"],
    "tensorrt": ["onnx", "onnxscript", "tensorrt-rtx; platform_machine == 'x86_64'"],
    # colcon test takes pytest where an extra of this name asks for it.
    "test": [
        "hypothesis",
        "matplotlib",
        "mypy",
        "opencv-python-headless",
        "pytest",
        "pytest-timeout",
        "pytest-xdist",
        "pyyaml",
        "ruff",
        "scikit-image",
        "scipy>=1.15",
        "tabulate",
        "tifffile",
    ],
}


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
    name=NAME,
    version="0.1.0",
    description="Super-resolves thermal image streams by four with residual-shifting diffusion",
    long_description=Path("README.md").read_text() if Path("README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    maintainer="difiisr_ros maintainers",
    maintainer_email="maintainers@users.noreply.example.org",
    python_requires=">=3.10",
    packages=list(package_folders()),
    # colcon --symlink-install refuses a package that is mapped to a folder of its own name.
    package_dir={p: f for p, f in package_folders().items() if not f.startswith(NAME)},
    package_data={
        "difiisr_ros": ["photograph.jpg"],
        "difiisr_ros.commands": ["fleet_report.html.j2"],
        "difiisr_training.evaluation": ["report.html.j2"],
    },
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]),
        (SHARE, ["package.xml"]),
        (f"lib/{NAME}", ["scripts/sr_node", "scripts/sr_nodes"]),
        *share_files("launch"),
        *share_files("config"),
    ],
    install_requires=[
        "annotated-types",
        "cyclopts>=4",
        "docstring-parser",
        "lz4",
        "mcap>=1.2",
        "numpy>=1.24",
        "pillow",
        "platformdirs",
        "psutil",
        "pydantic>=2",
        "pyyaml",
        "rosbags>=0.11,<0.12",
        "safetensors>=0.4",
        "scipy>=1.11",
        "torch>=2.6",
        "tqdm",
        "zstandard",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": [f"difiisr = {NAME}.cli:main"]},
    zip_safe=False,
)
