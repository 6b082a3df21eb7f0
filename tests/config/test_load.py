import pytest
from omegaconf import OmegaConf

from bitkd.config.load import choices, conf_dir, load_config, to_yaml
from bitkd.config.schema import Config, DataSpec, StageSpec, TrainerSpec, TrainSpec, settings_of
from bitkd.errors import InputError

BOTH = ["pipeline=multistage", "task=demo"]


@pytest.mark.parametrize("pipeline", choices("pipeline"))
@pytest.mark.parametrize("task", choices("task"))
def test_every_pipeline_goes_with_every_task(pipeline, task):
    config = load_config([f"pipeline={pipeline}", f"task={task}"])
    assert config.task.name == task
    assert config.pipeline.name == pipeline


def test_overrides_come_in_any_order_and_keep_each_other():
    first = load_config(["train.lr=1e-3", *BOTH, "stages.stage1.quant.per_row=true"])
    second = load_config(["stages.stage1.quant.per_row=true", "task=demo", "train.lr=0.001", "pipeline=multistage"])
    assert first == second
    assert first.train.lr == 1e-3
    assert first.stages["stage1"].quant.per_row
    assert first.stages["ternary"].quant.weight_bits == 2


def test_a_file_of_ones_own_is_a_choice(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("pipeline: {name: mine}\nstages:\n  teacher: {kind: finetune}\n")
    config = load_config([f"pipeline={file}", "task=demo"])
    assert list(config.stages) == ["teacher"]


def test_a_task_sets_up_only_the_stages_that_are_there(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("pipeline: {name: mine}\nstages:\n  one: {kind: finetune}\n")
    assert list(load_config([f"pipeline={file}", "task=demo"]).stages) == ["one"]
    assert load_config(BOTH).stages["teacher"].max_steps == 500
    assert list(load_config(["task=demo"], require=()).stages) == []


def test_a_key_of_an_earlier_version_is_refused_with_its_new_name():
    message = r"stages\.single\.quant\.gradient_clip has another name now; use stages\.single\.quant\.ste_clip"
    given = ["pipeline=singlestage", "task=demo"]
    with pytest.raises(InputError, match=message):
        load_config([*given, "stages.single.quant.gradient_clip=2.5"])
    with pytest.raises(InputError, match=r"use stages\.single\.loss\.padding \(skip for false, zero for true\)"):
        load_config([*given, "stages.single.loss.include_padding=true"])
    config = load_config([*given, "stages.single.quant.ste_clip=2.5", "stages.single.gradient_clip=0.5"])
    assert (config.stages["single"].quant.ste_clip, config.stages["single"].gradient_clip) == (2.5, 0.5)


def test_the_printed_configuration_says_everything():
    config = load_config(BOTH)
    printed = OmegaConf.create(to_yaml(config))
    assert printed.stages.split.kind == "split"
    assert printed.student.width == 0.5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([*BOTH, "trian.lr=1"], r"unknown key trian; did you mean train\?"),
        ([*BOTH, "train.lrr=1"], r"unknown key train\.lrr; did you mean lr\?"),
        ([*BOTH, "stages.stag1.lr=1"], r"stages\.stag1 is no stage of this pipeline; did you mean stage1\?"),
        ([*BOTH, "stages.stage1.loss.attention_map=1"], r"use stages\.stage1\.loss\.extra\.attention_map"),
        ([*BOTH, "embedding_bits=3"], "^embedding_bits=3 is unsupported"),
        ([*BOTH, "stages.stage1.quant.bits=1"], r"unknown key stages\.stage1\.quant\.bits"),
        ([*BOTH, "train.batch_size=many"], r"'train\.batch_size=many' has the wrong type; give a whole number"),
        ([*BOTH, "student.layers=3"], r"'student\.layers=3' has the wrong type; give a list of whole numbers, such as"),
        (
            [*BOTH, "stages.stage1.lr=fast"],
            r"'stages\.stage1\.lr=fast' has the wrong type; give a number, such as 2e-5, or null",
        ),
        ([*BOTH, "train.max_steps="], r"'train\.max_steps=' has no value; write one, or train\.max_steps=null"),
        (["pipeline=multistage", "task=mlni"], r"task=mlni is unknown; did you mean mnli\?"),
        (["pipeline=multistep", "task=demo"], r"pipeline=multistep is unknown; did you mean multistage\?"),
        (["pipeline=multistage"], r"task= is missing; choose one of .*mrpc"),
        (["task=demo"], r"pipeline= is missing; choose one of .*singlestage"),
        ([*BOTH, "nonsense"], r"'nonsense' is no setting; write key=value"),
        ([*BOTH, "train=fast"], r"train= is a section and takes no value"),
        (["pipeline=/nowhere/mine.yaml", "task=demo"], r"there is no such file"),
        (
            [*BOTH, "trainer.precision=bf16"],
            r"^trainer\.precision=bf16 is unknown; did you mean bf16-mixed\? \(use one of 32-true, bf16-mixed, 16-mixed\)$",
        ),
        ([*BOTH, "logger=tensorboard"], r"^logger=tensorboard is unknown; use one of csv, wandb$"),
        (
            [*BOTH, "stages.stage1.schedule=linaer"],
            r"^stages\.stage1\.schedule=linaer is unknown; did you mean linear\? \(use one of linear, constant\)$",
        ),
        (
            [*BOTH, "stages.stage1.select=null"],
            r"^stages\.stage1\.select=null is unknown; use one of auto, best, last$",
        ),
        ([*BOTH, "data.segments=3"], r"^data\.segments=3 is unknown; use one of 1, 2$"),
        ([*BOTH, "data.segments=two"], r"^data\.segments=two is unknown; use one of 1, 2$"),
        ([*BOTH, "student.layers=[1"], r"cannot be read: expected ',' or '\]'"),
    ],
)
def test_bad_settings_say_what_to_do(overrides, message):
    with pytest.raises(InputError, match=message):
        load_config(overrides)


def test_choices_are_checked_in_files_too_and_null_is_one_of_those_that_may_be_none(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("pipeline: {name: mine}\nstages:\n  one: {kind: finetune, select: bets, schedule: null}\n")
    with pytest.raises(
        InputError, match=r"^stages\.one\.select=bets is unknown; did you mean best\? \(use one of auto, best, last\)$"
    ):
        load_config([f"pipeline={file}", "task=demo"])
    chosen = ["stages.one.select=best", "stages.one.schedule=null", "data.segments=1"]
    file.write_text(file.read_text().replace("bets", "best"))
    config = load_config([f"pipeline={file}", "task=demo", *chosen])
    assert (config.stages["one"].select, config.stages["one"].schedule, config.data.segments) == ("best", None, 1)


def test_broken_yaml_is_named(tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text("a: [1\n")
    with pytest.raises(InputError, match=r"broken\.yaml is not valid YAML: .* at line \d+, column \d+"):
        load_config([f"pipeline={file}", "task=demo"])


def test_a_stage_overrides_the_defaults_of_all():
    config = load_config(
        [*BOTH, "train.epochs=7", "train.max_steps=9", "stages.split.lr=0.5", "stages.stage1.epochs=2"]
    )
    assert settings_of(config.stages["stage2"], config.train)["max_steps"] == 9
    assert settings_of(config.stages["stage1"], config.train)["max_steps"] is None
    assert settings_of(config.stages["stage1"], config.train)["epochs"] == 2
    assert settings_of(config.stages["split"], config.train)["lr"] == 0.5
    assert set(settings_of(config.stages["split"], config.train)) == set(TrainSpec.__dataclass_fields__)


def test_conf_is_found():
    assert (conf_dir() / "pipeline" / "multistage.yaml").is_file()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataSpec(segments=3), r"^data\.segments=3 is unknown; use one of 1, 2$"),
        (lambda: TrainerSpec(precision="bf16"), r"^trainer\.precision=bf16 is unknown; did you mean bf16-mixed"),
        (lambda: StageSpec(kind="init", select="first"), r"^select=first is unknown; use one of auto, best, last$"),
        (lambda: Config(logger="none"), r"^logger=none is unknown"),
    ],
)
def test_choices_are_checked_in_python_too(make, message):
    with pytest.raises(InputError, match=message):
        make()
