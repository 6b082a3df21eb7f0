#!/usr/bin/env bash
# Both pipelines on MRPC and RTE, students of 3 and of 6 layers. Resumable: finished stages are skipped.
#   GLUE=folder with MRPC/ and RTE/   MODEL=folder of a pre-trained 6-layer BERT   CORPUS=folder with *.txt
set -euo pipefail
: "${GLUE:?}" "${MODEL:?}" "${CORPUS:?}"
BITKD=${BITKD:-.venv/bin/bitkd}
RUNS=${RUNS:-runs/first_run}
PRECISION=${PRECISION:-32-true}

for layers in 1,3,5 0,1,2,3,4,5; do
  for task in mrpc rte; do
    for pipeline in multistage singlestage; do
      $BITKD run pipeline=$pipeline task=$task run.name=$pipeline-${layers//,/} run.dir="$RUNS" \
        data.dir="$GLUE" data.corpus="[$CORPUS]" model.pretrained="$MODEL" trainer.precision="$PRECISION" \
        student.layers="[$layers]" train.epochs=3 train.lr=2e-4 stages.teacher.lr=5e-5 \
        $([ $pipeline = multistage ] && echo stages.general.epochs=1)
    done
  done
done
