#!/usr/bin/env bash
# tools/build_aarch64.sh OUTDIR [ROOT]: cross-builds the aarch64 wheel for CPython 3.11 into OUTDIR.
#
# ROOT is a folder made by qemu_root.sh, the source of the aarch64 Python's headers and settings.
# Needs Debian 12 with g++-aarch64-linux-gnu, and CPython 3.11 with venv as $PYTHON (default: python3.11).
set -euo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:?usage: tools/build_aarch64.sh OUTDIR [ROOT]}")
root=$(realpath -m "${2:-build/aarch64-root}")
python=${PYTHON:-python3.11}
tools/qemu_root.sh "$root"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
"$python" -m venv "$work/venv"
mapfile -t requires < <("$python" -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")')
"$work/venv/bin/pip" install --quiet "${requires[@]}"

# The build's Python runs here, and answers as the aarch64 Python would: suffix, ABI and platform.
mkdir "$work/settings"
cp "$root/usr/lib/python3.11/_sysconfigdata__aarch64-linux-gnu.py" "$work/settings/"
export PYTHONPATH=$work/settings
export _PYTHON_SYSCONFIGDATA_NAME=_sysconfigdata__aarch64-linux-gnu
export _PYTHON_HOST_PLATFORM=linux-aarch64
export CMAKE_ARGS="-DCMAKE_TOOLCHAIN_FILE=$PWD/tools/aarch64.cmake -DPython_INCLUDE_DIR=$root/usr/include/python3.11 \
-DCMAKE_C_FLAGS=-I$root/usr/include -DCMAKE_CXX_FLAGS=-I$root/usr/include ${CMAKE_ARGS:-}"
PATH=$work/venv/bin:$PATH "$work/venv/bin/pip" wheel --quiet --no-build-isolation --no-deps --wheel-dir "$out" .
ls -l "$out"/*aarch64.whl
