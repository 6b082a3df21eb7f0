#!/usr/bin/env bash
# Both pipelines on MRPC and RTE, students of 3 and of 6 layers. Resumable: finished stages are skipped.
#   GLUE=folder with MRPC/ and RTE/   MODEL=folder of a pre-trained 6-layer BERT   CORPUS=folder with *.txt
#   PRECISION=bf16-mixed where the hardware has bf16, EPOCHS=1 for less
set -euo pipefail
: "${GLUE:?}" "${MODEL:?}" "${CORPUS:?}"
BITKD=${BITKD:-.venv/bin/bitkd}
RUNS=${RUNS:-runs/first_run}
PRECISION=${PRECISION:-32-true}

both() { # layers, task, epochs of a KD stage, settings
  local layers=$1 task=$2 epochs=${EPOCHS:-$3}
  for pipeline in multistage singlestage; do
    $BITKD run pipeline=$pipeline task=$task run.name=$pipeline-${layers//,/} run.dir="$RUNS" \
      data.dir="$GLUE" data.corpus="[$CORPUS]" model.pretrained="$MODEL" trainer.precision="$PRECISION" \
      student.layers="[$layers]" train.epochs="$epochs" train.lr=2e-4 stages.teacher.lr=5e-5 "${@:4}" \
      $([ $pipeline = multistage ] && echo stages.general.epochs=1)
  done
}

both 1,3,5 mrpc 3 stages.teacher.epochs=3
both 1,3,5 rte 3 stages.teacher.epochs=4
both 0,1,2,3,4,5 mrpc 3 stages.teacher.epochs=3
both 0,1,2,3,4,5 rte 3 stages.teacher.epochs=4
