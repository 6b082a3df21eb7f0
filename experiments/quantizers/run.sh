#!/bin/sh
# The trials of one sweep, in processes side by side of one thread each; call it again to go on after an interruption.
#
# experiments/quantizers/run.sh SWEEP CELLS PROCESSES SETTING...
#
# SWEEP: scales, methods or bits. CELLS: of 1 to 4, such as "1 3" (1: sst2, seed 1; 2: sick, seed 1; 3: sst2, seed 2; 4: sick, seed 2).
# PROCESSES: for each cell; those that come second to a teacher wait for it. Started from the top of the checkout.
set -eu
sweep=$1 cells=$2 processes=$3
shift 3
mkdir -p build/quantizers
export OMP_NUM_THREADS=1
pids=
for cell in $cells; do
    for process in $(seq "$processes"); do
        shard=$((cell + 4 * (process - 1)))
        nice -n 19 .venv/bin/bitkd sweep "experiments/quantizers/$sweep.yaml" --shards "$shard/$((4 * processes))" "$@" \
            >> "build/quantizers/$sweep-$shard.log" 2>&1 &
        pids="$pids $!"
    done
done
status=0
for pid in $pids; do
    wait "$pid" || status=1
done
[ $status = 0 ] || echo "not all trials finished; read build/quantizers/$sweep-*.log" >&2
exit $status
