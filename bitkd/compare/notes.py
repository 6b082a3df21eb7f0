"""What one run by itself says against its own score."""

from bitkd.compare.checks import is_constant, learned_nothing
from bitkd.compare.forms import VALUES, metric_text
from bitkd.compare.runs import Run, Stage


def notes_of(run: Run) -> list[str]:
    """A sentence for the teacher and the final student if it says the same for every row of the first dev set, or nothing
    right.

    None for a run that ends in no student of the task, and for a dev set whose rows all have one label.
    """
    if not run.final.answers_task or (run.form is VALUES and is_constant(run.final_predictions.labels)):
        return []
    notes = []
    if run.teacher is not None and run.teacher is not run.final and (found := _constant(run.teacher, run)):
        notes.append(
            f"the teacher ({run.teacher.name}) {found}: no student can learn the task from it; give it more steps "
            f"(stages.{run.teacher.name}.epochs=) or another learning rate (stages.{run.teacher.name}.lr=)"
        )
    if found := _constant(run.final, run):
        notes.append(
            f"the final student ({run.final.name}) {found}: it learned nothing that {metric_text(run.metric)} shows; the stages' "
            "scores show where it was lost; try more steps there (stages.NAME.epochs=) or another learning rate (stages.NAME.lr=)"
        )
    return notes


def _constant(stage: Stage, run: Run) -> str | None:
    """What a model predicts for every row of the first dev set, in words; None if it learned something."""
    predictions = (stage.predictions or {}).get(run.dev_set)
    if predictions is None or not learned_nothing(run, predictions):
        return None
    rows = f"of the {len(predictions.predicted)} rows of {run.dev_set}"
    if run.form is not VALUES:
        return f"{run.form.nothing} {rows}"
    value = predictions.predicted[0]
    answer = f"{value:.4g}" if run.labels is None else f'"{run.labels[int(value)]}"'
    return f"predicts {answer} for each {rows}"
