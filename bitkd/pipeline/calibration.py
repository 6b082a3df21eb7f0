"""The start of what a stage's quantizers of activations learn."""

from transformers import PreTrainedModel

from bitkd.models.calibration import calibrate, needs_calibration
from bitkd.pipeline.importance import BATCH_ROWS, sample_batches
from bitkd.pipeline.stage import PlannedStage
from bitkd.sources.sources import Sources


def calibrate_student(stage: PlannedStage, sources: Sources, student: PreTrainedModel) -> None:
    """Give the quantizers that a stage brings in a start, from one batch of its rows, in place.

    Every process does the same, also that of a resumed stage, whose checkpoint then brings the values that it had. This is one
    forward pass of BATCH_ROWS rows: its floating-point operations and seconds are in no record.
    """
    if needs_calibration(student):
        calibrate(student, sample_batches(stage, sources, BATCH_ROWS))
