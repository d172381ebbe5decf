#!/usr/bin/env bash
# Fetches torchao (int8 and int4 weights) as a wheel for Linux on x86-64 into bench/gpu/wheels, which git ignores, for a machine without
# network. Other packages that such a machine lacks are given as arguments, each with its own needs:
#     bash bench/gpu/wheels.sh 'pydantic>=2.10,<3'
# PYTHON: whose pip fetches · PYTHON_VERSION: for which Python (3.12).
set -euo pipefail
cd "$(dirname "$0")"
mkdir -p wheels && rm -f wheels/*.whl
fetch() {
  local platforms=() name
  for name in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014; do platforms+=(--platform "${name}_x86_64"); done
  "${PYTHON:-python3}" -m pip download --quiet --only-binary=:all: --implementation cp --dest wheels \
    --python-version "${PYTHON_VERSION:-3.12}" "${platforms[@]}" "$@"
}
fetch --no-deps 'torchao>=0.18,<0.20' # without torch
if [ $# -gt 0 ]; then fetch "$@"; fi
du -sh wheels
