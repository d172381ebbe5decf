#!/usr/bin/env bash
# Fetches wheels for Linux on x86-64 into bench/gpu/wheels, which git ignores, for a machine without network: torchao (int8 and int4 weights).
# `--all` adds what the package and its tests import, for a machine that has Python and torch alone (about 45 MiB); other arguments are
# packages, each with its own needs:
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
if [ "${1:-}" = --all ]; then
  shift
  fetch 'click>=8.5,<9' 'jinja2>=3.1,<4' 'numpy>=1.26,<3' 'pillow>=10.3,<14' 'pydantic>=2.10,<3' 'rich>=13.8,<16' 'safetensors>=0.6,<1' \
    'pytest>=8' 'pytest-timeout>=2.3'
  fetch --no-deps 'tokenizers>=0.22,<0.24' # without huggingface_hub, which its `from_pretrained` alone needs
fi
if [ $# -gt 0 ]; then fetch "$@"; fi
du -sh wheels
