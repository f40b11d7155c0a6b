#!/bin/sh
# Usage: install_torch.sh PYTHON. Installs torch unless PYTHON has one: the CPU build where there is no GPU.
# TORCH_CPU_INDEX is where CPU builds come from; without it reachable, the plain index, whose torch brings CUDA along.
set -eu
python=$1
version=$(sed -n 's/^torch==//p' "$(dirname "$0")/constraints.txt")
index=${TORCH_CPU_INDEX:-https://download.pytorch.org/whl/cpu}

has_gpu() { [ -e /proc/driver/nvidia/version ] || nvidia-smi -L >/dev/null 2>&1; }
has_torch() { "$python" -W ignore -c 'import torch; assert tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6)' 2>/dev/null; }
pip() { "$python" -m pip --disable-pip-version-check "$@"; }

has_torch && exit 0
if has_gpu; then
    echo "installing torch with CUDA (3 GB and more) ..."
else
    echo "installing torch for the CPU (200 MB) ..."
    pip install -qq --retries 0 --timeout 20 --index-url "$index" "torch==$version" 2>/dev/null && has_torch && exit 0
    pip install -qq "torch==$version+cpu" 2>/dev/null && has_torch && exit 0
    echo "The index of CPU builds is not reachable; the plain one may bring CUDA along (4 GB)."
fi
pip install "torch==$version"
