#!/usr/bin/env bash
# tools/test_x86_baselines.sh [PYTHON]: the installed package on older x86-64 CPUs, emulated by qemu-user.
#
# An instruction that the CPU lacks ends the process with SIGILL. Nehalem (SSE4.2) is the oldest that NumPy runs on.
set -euo pipefail
tools=$(realpath "$(dirname "$0")")
python=$(realpath -s "$(command -v "${1:-python}")")
folder=$(mktemp -d) # away from the source tree: the installed package is meant
trap 'rm -rf "$folder"' EXIT
cd "$folder"
check() {
  echo "--- qemu-x86_64 -cpu ${1%%,*}"
  qemu-x86_64 -cpu "$1" "$python" "$tools/x86_baselines.py" "$2"
}
# Without its variable NumPy's OpenBLAS takes a Nehalem for a Haswell, and dies in `import numpy`.
OPENBLAS_CORETYPE=Nehalem check Nehalem scalar
# Without what qemu does not emulate, and would warn about.
check Haswell-noTSX,pcid=off,x2apic=off,tsc-deadline=off,invpcid=off avx2,scalar
