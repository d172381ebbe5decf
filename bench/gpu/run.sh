#!/usr/bin/env bash
# Every check and measurement that needs a GPU, in about five minutes; README.md beside this says how to run it and read it.
#     bash bench/gpu/run.sh [--device cuda|cpu] [--quick] [--only tests,speed,released,training,cache] [--limit SECONDS]
# Each part has its own time limit and exit code; none stops the others. Rows, logs and the table go to $OUT (runs/gpu if unset).
set -uo pipefail
cd "$(dirname "$0")/../.."
device=cuda quick=0 only=tests,speed,released,training,cache limit=540
while [ $# -gt 0 ]; do
  case "$1" in
    --device) device=$2; shift 2 ;;
    --quick) quick=1; shift ;;
    --only) only=$2; shift 2 ;;
    --limit) limit=$2; shift 2 ;;
    *) echo "unknown option $1; there are --device, --quick, --only and --limit" >&2; exit 2 ;;
  esac
done
export OUT="${OUT:-$PWD/runs/gpu}"
mkdir -p "$OUT"
rm -f "$OUT"/{rows.jsonl,parts.jsonl,table.txt} "$OUT"/{tests,speed,released,training,cache}.log
rows=$OUT/rows.jsonl python=${PYTHON:-python3}
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1 UNMASK_GPU_DEVICE="$device" UNMASK_GPU_ROWS="$rows"
if [ "$device" != cpu ] && compgen -G "bench/gpu/wheels/*.whl" >/dev/null; then
  site=$(mktemp -d)
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --target "$site" bench/gpu/wheels/*.whl &&
    export PYTHONPATH="$PWD:$site"
fi

part() { # part NAME SECONDS COMMAND...: appends to the log of the part's first word, and notes exit code and time
  local name=$1 most=$2 log began left code
  shift 2
  case ",$only," in *",${name%% *},"*) ;; *) return 0 ;; esac
  left=$((limit - SECONDS)); began=$SECONDS log=$OUT/${name%% *}.log
  if [ "$left" -lt "$most" ]; then most=$left; fi
  if [ "$most" -lt 5 ]; then
    code=124
    echo "no time left" >>"$log"
  else
    echo "== $name: $*" | tee -a "$log"
    timeout --kill-after=5 "$most" "$@" >>"$log" 2>&1
    code=$?
  fi
  [ "$code" = 0 ] || tail -n 15 "$log"
  printf '{"part": "%s", "exit": %d, "seconds": %d}\n' "$name" "$code" $((SECONDS - began)) >>"$OUT/parts.jsonl"
}

speed=("$python" bench/speed.py --history "$rows") groups=latency,throughput
if [ "$quick" = 1 ]; then
  flags=(--quick) float32=(--repeats 1 --only twins) bf16=(--repeats 1 --only latency) few=(--steps 2 --times 1 --variants bf16 --images 400)
else
  flags=() float32=(--repeats 7 --only "$groups,twins") bf16=(--repeats 7 --only "$groups") few=(--steps 30)
fi

if [ "$device" != cpu ]; then nvidia-smi --query-gpu=name,memory.total,driver_version,clocks.sm --format=csv,noheader | tee "$OUT/tests.log"; fi
part tests 150 "$python" -m pytest -q -m gpu --durations=5 -p no:cacheprovider --continue-on-collection-errors tests/gpu tests/checkpoints
part "speed float32" 80 "${speed[@]}" --device "$device" "${float32[@]}"
part "speed bfloat16 fused" 60 "${speed[@]}" --device "$device" --dtype bfloat16 --attention fused "${bf16[@]}"
part released 150 "$python" bench/gpu/released.py --device "$device" --history "$rows" ${flags[@]+"${flags[@]}"}
if [ "$quick" = 0 ]; then
  part "speed bfloat16" 60 "${speed[@]}" --device "$device" --dtype bfloat16 "${bf16[@]}"
  part "speed CPU" 60 "${speed[@]}" --threads 8 --repeats 3 --only latency
fi
part training 120 "$python" bench/gpu/training.py --device "$device" --history "$rows" "${few[@]}"
if [ -f bench/cache.py ]; then
  history=()
  if grep -q -e --history bench/cache.py; then history=(--history "$rows"); fi
  part cache 90 "$python" bench/cache.py --device "$device" ${history[@]+"${history[@]}"}
fi
"$python" bench/gpu/table.py "$OUT" | tee "$OUT/table.txt"
