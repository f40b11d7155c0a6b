#!/bin/sh
# Usage: fill_venv.sh FOLDER [kilted|jazzy]. Makes the virtual environment and installs all that demo and
# tests use; where no ROS distribution is sourced, the wheels of the one that is named.
# Run it again at any time: what is there stays, and nothing is fetched for it.
set -eu
venv=$1
here=$(dirname "$0")
ros=${2:-kilted}
constraints=$here/constraints.txt
pins=$here/constraints-$ros.txt
[ -f "$pins" ] || { echo "There are no wheels of ROS $ros: choose kilted or jazzy." >&2; exit 1; }

can_serve() {
    "$1" - >/dev/null 2>&1 <<'PYTHON'
import os, sys
assert sys.version_info[:2] >= (3, 10)
if os.environ.get("ROS_DISTRO"):
    import rclpy  # of the sourced distribution, which is built for one Python
PYTHON
}

if [ ! -x "$venv/bin/python" ]; then
    for python in python3 python3.14 python3.13 python3.12 python3.11 python3.10; do
        can_serve "$python" && break
        python=
    done
    if [ -z "$python" ]; then
        echo "No Python 3.10 or newer found${ROS_DISTRO:+ that can import rclpy of ROS $ROS_DISTRO}." >&2
        exit 1
    fi
    # ROS distributions keep Python packages of theirs (numpy, yaml) in the system's site-packages.
    "$python" -m venv ${ROS_DISTRO:+--system-site-packages} "$venv" || {
        rm -rf "$venv"
        echo "$python cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2
        exit 1
    }
fi

pip() { "$venv/bin/python" -m pip --disable-pip-version-check "$@"; }
install() { pip install -qq --constraint "$constraints" "$@"; }

sh "$here/install_torch.sh" "$venv/bin/python"
# A torch that was there before, such as a Jetson's, is kept too, with the torchvision it wants.
cat "$constraints" "$pins" >"$venv/pins.txt"
"$venv/bin/python" -W ignore - "$venv/pins.txt" >"$venv/constraints.txt" <<'PYTHON'
import sys, torch
lines = open(sys.argv[1]).read().splitlines()
expected = next(line for line in lines if line.startswith("torch=="))
if expected != "torch==" + torch.__version__.partition("+")[0]:
    lines = [line for line in lines if not line.startswith("torchvision==")]
print(*(line for line in lines if line != expected), f"torch=={torch.__version__}", sep="\n")
PYTHON
constraints=$venv/constraints.txt

echo "installing the package and its tools ..."
install 'setuptools<80' wheel
install --no-build-isolation --editable "$here/..[train,onnx,time,test]"
if [ -z "${ROS_DISTRO:-}" ]; then
    install --no-build-isolation --editable "$here/..[ros]" ||
        echo "No ROS wheels for this machine: make demo runs the offline replay, ROS tests skip."
fi
install --no-build-isolation --editable "$here/..[docs]" || echo "No mkdocs: the test of the site skips."
# Without their dependencies, which ask for more than is used. Tests that need them skip where they
# cannot be had.
for package in einops lpips spandrel; do
    install --no-deps "$package" || echo "No $package for this machine: tests that need it skip."
done
# These bring what they need; a machine without them skips the tests of TensorRT, judges and fleets.
for package in tensorrt-rtx jinja2 nvidia-ml-py pandas pycocotools tabulate torchmetrics transformers \
    fsspec pyarrow 'ray[client]' 'moto[server]'; do
    install "$package" || echo "No $package for this machine: tests that need it skip."
done
