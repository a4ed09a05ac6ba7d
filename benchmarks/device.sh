#!/usr/bin/env bash
# Everything that an accelerator owes the tables, in 9 minutes: `benchmarks/device.sh [FILE]` prints it, and writes FILE.
# `benchmarks/device.sh --quick [FILE]` runs the same commands at tiny sizes, on any machine.
set -u
cd "$(dirname "$0")/.."
quick=
if [ "${1:-}" = --quick ]; then quick=1; shift; fi
out=${1:-build/device.md}
python=${PYTHON:-python}
mkdir -p "$(dirname "$out")"
export XLA_PYTHON_CLIENT_PREALLOCATE=false  # torch has the device, too
failed=0

part() {  # part SECONDS TITLE COMMAND...: a part that fails or takes too long leaves a note, and the others go on
    local limit=$1 title=$2
    shift 2
    { echo "## $title"; echo; echo "\`$*\`"; echo; } >> "$out"
    timeout "$limit" "$python" -m "$@" >> "$out" 2> "$out.log"
    local code=$?
    if [ $code -ne 0 ]; then
        failed=1
        echo "ended with code $code: $(tail -n 1 "$out.log")" >> "$out"
    fi
    echo >> "$out"
}

"$python" -c 'import jax; d = jax.devices(); print(f"# {len(d)} x {d[0].device_kind}, jax {jax.__version__}\n")' > "$out" || exit 1
if [ -n "$quick" ]; then
    part 300 MaxSim benchmarks.maxsim_device --quick
    part 300 Encoding benchmarks.encode --device --shape small --pages 1 --repeats 1
    part 300 "Search of resident corpora" benchmarks.resident --workloads 0 --repeats 1
    part 300 "Training: gradcache" benchmarks.train --device --shape small --pages 2 --chunk 1 --repeats 1 --step gradcache
else
    part 100 MaxSim benchmarks.maxsim_device
    part 75 Encoding benchmarks.encode --device
    part 150 "Search of resident corpora" benchmarks.resident --workloads 0,4 --repeats 3
    for step in adapter lora gradcache; do
        part 70 "Training: $step" benchmarks.train --device --step $step
    done
fi
rm -f "$out.log"
cat "$out"
exit $failed
