#!/usr/bin/env bash
# tools/test_aarch64.sh WHEEL [ROOT [PYTEST ARGUMENTS...]]: pytest against the aarch64 wheel, under qemu-user.
#
# Once on a CPU with every extension that qemu knows, once on the smallest ARMv8.0 core; both at the same time.
# ROOT is a folder made by qemu_root.sh; the wheel is installed into it.
set -euo pipefail
cd "$(dirname "$0")/.."
wheel=${1:?usage: tools/test_aarch64.sh WHEEL [ROOT [PYTEST ARGUMENTS...]]}
root=$(realpath -m "${2:-build/aarch64-root}")
python=${PYTHON:-python3.11}
tools/qemu_root.sh "$root"

packages=$root/usr/lib/python3/dist-packages
rm -rf "$packages"/fastmobilenet "$packages"/fastmobilenet-*.dist-info
"$python" -m pip install --quiet --target "$packages" --upgrade --no-deps --platform=linux_aarch64 --python-version=3.11 \
  --implementation=cp --abi=cp311 "$wheel"

# qemu-user 7.2 ends a forked child that makes a thread with an assertion of its own (qemu_plugin_vcpu_init_hook),
# if the parent had a thread of that number. So T30 is tested on x86-64 only.
select="not slow and not timing and not fork"
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
declare -A jobs
for cpu in max cortex-a53; do
  FASTMOBILENET_QEMU_CPU=$cpu HYPOTHESIS_STORAGE_DIRECTORY=$logs/$cpu PYTHONDONTWRITEBYTECODE=1 \
    "$root/usr/bin/python" -m pytest -p no:cacheprovider -m "$select" "${@:3}" >"$logs/$cpu.txt" 2>&1 &
  jobs[$cpu]=$!
done
failed=0
for cpu in max cortex-a53; do
  wait "${jobs[$cpu]}" || failed=1
  echo "--- qemu-aarch64 -cpu $cpu"
  cat "$logs/$cpu.txt"
done
exit $failed
