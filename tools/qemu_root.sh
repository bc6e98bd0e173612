#!/usr/bin/env bash
# tools/qemu_root.sh [ROOT]: an aarch64 Python that runs under qemu-user, unpacked into a folder.
#
# Debian's arm64 python3.11 with its libraries and headers, and from PyPI numpy, pillow, pytest and hypothesis.
# ROOT/usr/bin/python starts it like any other Python; FASTMOBILENET_QEMU_CPU names the CPU (default: max).
# Needs Debian 12 with qemu-user, and CPython 3.11 with pip as $PYTHON (default: python3.11). Changes nothing
# outside ROOT.
set -euo pipefail
cd "$(dirname "$0")/.."
root=$(realpath -m "${1:-build/aarch64-root}")
python=${PYTHON:-python3.11}

[ -e "$root/complete" ] && exit 0
rm -rf "$root"
apt=$root/apt
mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial"
touch "$apt/status"

# A package database of its own: empty, arm64, and with the sources of this machine. So apt finds the whole
# closure of what python needs, and no foreign architecture is added to the host.
options=(
  -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Install-Recommends=false
  -o "Dir::State::lists=$apt/lists" -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt/cache"
  -o APT::Sandbox::User=root -o Debug::NoLocking=1 -o Acquire::Languages=none -o Acquire::Retries=3
)
apt-get "${options[@]}" update
apt-get "${options[@]}" --yes --download-only install python3.11-minimal libpython3.11-stdlib libstdc++6
(cd "$apt/cache/archives" && apt-get "${options[@]}" download libpython3.11-dev)
for package in "$apt"/cache/archives/*.deb; do
  dpkg -x "$package" "$root"
done

# A wheel is found under every tag that pip is told of: newer glibc tags do not imply older ones.
platforms=(--platform=manylinux2014_aarch64)
for minor in 17 24 26 27 28 31 34 35; do
  platforms+=("--platform=manylinux_2_${minor}_aarch64")
done
"$python" -m pip install --quiet --target "$root/usr/lib/python3/dist-packages" "${platforms[@]}" \
  --python-version=3.11 --implementation=cp --abi=cp311 --abi=abi3 --abi=none --only-binary=:all: \
  numpy pillow pytest hypothesis

# A script on the host, so that a test may start sys.executable again.
cat >"$root/usr/bin/python" <<EOF
#!/bin/sh
exec qemu-aarch64 -cpu "\${FASTMOBILENET_QEMU_CPU:-max}" -L "$root" -0 "$root/usr/bin/python" "$root/usr/bin/python3.11" "\$@"
EOF
chmod +x "$root/usr/bin/python"
rm -rf "$apt"
"$root/usr/bin/python" -c 'import platform, numpy, PIL.Image; print(platform.machine(), platform.python_version(), numpy.__version__)'
touch "$root/complete"
