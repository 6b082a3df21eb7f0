"""Finished runs, read from their folders or from a comparison.json."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bitkd.compare.forms import ENTITIES, form_of
from bitkd.compare.record_file import RECORD_FILE, check_run, from_json
from bitkd.compare.runs import Predictions, Run, Stage, recorded_kind
from bitkd.config.comparable import with_newer
from bitkd.data.tasks import HOLDOUT
from bitkd.errors import InputError
from bitkd.files import checksum
from bitkd.names import is_name, shown
from bitkd.stages.kinds import Kind, kind_of
from bitkd.store.artifacts import PREDICTIONS_FILE, STAGE_FILE, WEIGHTS_FILE, Artifact
from bitkd.store.records import MIB, FlopsRecord, RunManifest, SizeRecord
from bitkd.store.run_folder import MANIFEST, RunFolder

_NO_SIZE = SizeRecord(parameters=0, precision="", paper_mib=0.0, file_mib=0.0, encoder_bits=0, word_tables=0)


def read_runs(source: Path) -> list[Run]:
    """The runs of a path: of a run folder, or of a comparison.json (or its folder).

    Raises InputError if a run is not finished or of an older version, or a record is missing or damaged.
    """
    source = source.expanduser()
    file = source / RECORD_FILE if (source / RECORD_FILE).is_file() else source
    advice = f"name a run folder or a {RECORD_FILE} that `bitkd compare --out` wrote"
    if file.is_file():
        if file.suffix != ".json" or file.name == MANIFEST:
            raise InputError(f"{file} is no {RECORD_FILE}; {advice}")
        try:
            runs = from_json(file.read_text(encoding="utf-8"), str(file))
            return [replace(run, settings=with_newer(run.settings)) for run in runs]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file} cannot be read ({error})") from error
    if source.suffix == ".json" or not source.exists():
        raise InputError(f"{source} does not exist; {advice}")
    return [load_run(source, to_compare=True)]


def artifact_folders(source: Path) -> dict[str, Path]:
    """Key of an artifact -> its folder, for the artifacts of a run folder; none for a comparison.json.

    source: what `read_runs` has read.
    """
    source = source.expanduser()
    if (source / RECORD_FILE).is_file() or not source.is_dir():
        return {}
    return {key: source / stage for stage, key in RunFolder.read(source).stages.items()}


def load_run(folder: Path, to_compare: bool = False) -> Run:
    """The run in a folder. Raises InputError if it is not finished, or its records are missing or damaged.

    to_compare: also check that the run ends in a student of the task, and that its files have not changed.
    """
    run_folder = RunFolder.read(folder)
    manifest = run_folder.manifest
    assert manifest is not None  # read() raises if there is none
    missing = [name for name, key in manifest.planned.items() if manifest.artifacts.get(name) != key]
    if missing or not manifest.planned:
        names = ", ".join(missing) or "every stage"
        raise InputError(f"{folder} is not finished: {names} missing or of other settings; run it to the end")
    artifacts = run_folder.artifacts()
    if to_compare:
        for artifact in artifacts.values():
            _check_contents(artifact)
    run = _make_run(folder, manifest, artifacts)
    if to_compare:
        if not run.final.answers_task:
            raise InputError(
                f"{folder} ends in no student of the task (its last stage is of kind {run.final.kind}); name another run"
            )
        try:
            check_run(run)
        except ValueError as error:
            raise InputError(f"{folder}: its records are damaged ({error}); run it again") from error
    return run


def _check_contents(artifact: Artifact) -> None:
    """Raise InputError if a file of an artifact has changed; the weights, which take long, are left out."""
    for name, expected in artifact.stage.checksums.items():
        file = artifact.path / name
        if not is_name(name):
            raise InputError(
                f"{artifact.path / STAGE_FILE} is damaged (it names the file {shown(name)}); run the stage again"
            )
        if name != WEIGHTS_FILE and file.is_file() and checksum(file) != expected:
            raise InputError(f"{file} is damaged (its stage.json has another checksum of it); run the stage again")


def chain_of(kinds: Mapping[str, Kind], upstream: Mapping[str, Mapping[str, str]]) -> list[str]:
    """The stages of a pipeline's own chain, without what pipelines share: augmented rows and teachers.

    A fine-tuned stage counts as a teacher if (a) it teaches another stage or starts from the pre-trained model, and (b) it
    is not the final stage and not built on a student.  kinds: by stage, in graph order.  upstream: stage -> role -> stage.
    """
    models = [stage for stage in kinds if not kinds[stage].makes_rows]
    taught_by = {upstream[stage].get("teacher") for stage in kinds}
    teachers: set[str] = set()
    for stage in models:
        source = upstream[stage].get("student")
        is_root = source not in kinds
        is_final = stage == models[-1] and len(models) > 1
        if kinds[stage].fine_tunes and not is_final and (is_root or (source in teachers and stage in taught_by)):
            teachers.add(stage)
    return [stage for stage in models if stage not in teachers]


def _make_run(folder: Path, manifest: RunManifest, artifacts: Mapping[str, Artifact]) -> Run:
    for field in ("titles", "upstream"):
        absent = [name for name in artifacts if name not in getattr(manifest, field)]
        if absent:
            raise InputError(f"{folder}: its manifest is damaged ({field} lacks {', '.join(absent)}); run it again")
    kinds = {
        name: recorded_kind(artifact.stage.kind, f"stage {name} of {folder}") for name, artifact in artifacts.items()
    }
    chain = chain_of(kinds, manifest.upstream)
    teacher = next((name for name, kind in kinds.items() if name not in chain and not kind.makes_rows), None)
    return Run(
        name=folder.resolve().name,
        pipeline=manifest.pipeline,
        title=manifest.title,
        task=manifest.task,
        metric=manifest.metric,
        metrics=manifest.metrics,
        labels=manifest.labels,
        seed=manifest.seed,
        hyperparameters=manifest.hyperparameters,
        budget=manifest.budget,
        settings=with_newer(manifest.settings),
        versions=_versions([artifact.stage.versions for artifact in artifacts.values()]),
        stages=[
            _make_stage(name, artifact, manifest, name in chain, name in (teacher, list(artifacts)[-1]))
            for name, artifact in artifacts.items()
        ],
        study=manifest.study,
        finished=list(artifacts.values())[-1].stage.created if manifest.study else None,
    )


def _versions(of_stages: list[dict[str, str]]) -> dict[str, str]:
    """Each library's version, or versions if stages were made by several."""
    names = dict.fromkeys(name for versions in of_stages for name in versions)
    return {name: ", ".join(sorted({versions[name] for versions in of_stages if name in versions})) for name in names}


def _make_stage(name: str, artifact: Artifact, manifest: RunManifest, in_chain: bool, with_predictions: bool) -> Stage:
    record, metrics, folder = artifact.stage, artifact.metrics, artifact.path
    is_model = not kind_of(record.kind).makes_rows
    weights = folder / WEIGHTS_FILE
    if is_model and (record.size is None or record.flops is None):
        raise InputError(
            f"{folder} was made by an older version: its record lacks size or flops; run it again (bitkd run with the "
            "run's settings)"
        )
    if is_model and not weights.is_file():
        raise InputError(f"{folder} is damaged: it has no {weights.name}; run the stage again")
    size, flops = record.size or _NO_SIZE, record.flops or FlopsRecord(0, 0)
    with_predictions = with_predictions and metrics.score is not None  # without a head there is nothing to predict
    return Stage(
        name=name,
        title=manifest.titles[name],
        kind=record.kind,
        key=folder.resolve().name,
        upstream=manifest.upstream[name],
        in_chain=in_chain,
        score=_finite(metrics.score),
        dev={dev: {metric: _finite(value) for metric, value in values.items()} for dev, values in metrics.sets.items()},
        precision=size.precision,
        parameters=size.parameters,
        encoder_bits=size.encoder_bits,
        word_tables=size.word_tables,
        paper_mib=size.paper_mib,
        packed_mib=size.file_mib,
        disk_mib=weights.stat().st_size / MIB if is_model else 0.0,
        steps=record.steps,
        examples=record.examples,
        student_flops=flops.student,
        teacher_flops=flops.teacher,
        seconds=record.seconds,
        device=record.device,
        world_size=record.world_size,
        trainer_precision=record.precision,
        curve=[(step, score) for step, score in record.curve if math.isfinite(score)],
        predictions=(
            read_predictions(folder / PREDICTIONS_FILE, manifest.metric, manifest.labels) if with_predictions else None
        ),
        importance_flops=flops.importance,
        validation_seconds=record.validation_seconds,
        saving_seconds=record.saving_seconds,
        padded_tokens=record.padded_tokens,
        tokens=record.tokens,
        selected=record.selected,
        selected_step=record.selected_step,
        selection_rows=record.selection_rows,
    )


def read_predictions(file: Path, metric: str, labels: list[str] | None) -> dict[str, Predictions]:
    """The predictions of an artifact by dev set. Raises InputError if the file is missing or damaged.

    metric: the run's primary one.  labels: the run's, see `bitkd.compare.runs.Run`.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    if not file.is_file():
        raise InputError(f"{file} is missing; run the stage again")
    form = form_of(metric)
    try:
        tensors = load_file(file)
        found = {}
        for key in sorted(tensors):
            name, _, part = key.rpartition(".")
            if part != "logits" or name == HOLDOUT:
                continue
            logits, targets = tensors[key], tensors[f"{name}.labels"]
            if logits.ndim != 2 or targets.ndim != 1 or len(logits) != len(targets) or len(targets) == 0:
                raise ValueError(f"{name} has logits {logits.shape} for labels {targets.shape}")
            if labels is None and logits.shape[1] != form.outputs:
                raise ValueError(f"{name} has logits {logits.shape} for the metric {metric}")
            predicted = logits[:, -1] if labels is None else logits.argmax(axis=1)
            matched = logits[:, 0].tolist() if form is ENTITIES else None
            found[name] = Predictions(targets.tolist(), predicted.tolist(), matched)
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        raise InputError(f"{file} is damaged ({error}); run the stage again") from error
    return found


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
