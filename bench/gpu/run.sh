#!/usr/bin/env bash
# Every check and measurement that needs a GPU, then training of `small` for the time that is left. README.md beside this explains the parts.
#     bash bench/gpu/run.sh [MINUTES [OUT]] [--device cuda|cpu] [--quick] [--only tests,mid] [--resume FOLDER]
# MINUTES: for everything (9) · OUT: folder of the results ($OUT, or runs/gpu), at most eight files of at most 16 MiB, 60 MiB together.
# Needs Python 3.12, torch 2.11, and what pyproject.toml lists under `dependencies`, with pytest; torchao for the quantised modes. Nothing is
# installed and no network is used. What the machine lacks is carried as wheels in bench/gpu/wheels, which `bash bench/gpu/wheels.sh` fetches:
# torchao, or `wheels.sh --all` for a machine with Python and torch alone.
set -uo pipefail
exec "${PYTHON:-python3}" "$(dirname "$0")/run.py" "$@"
