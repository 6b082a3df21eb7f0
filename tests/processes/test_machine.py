import logging
import subprocess
import sys

import pytest

from bitkd.cli import main
from bitkd.config.load import load_config
from bitkd.config.schema import TrainerSpec
from bitkd.engine import cpu
from bitkd.errors import InputError
from bitkd.processes import machine
from bitkd.processes.machine import Machine, augmentation_precision, check_machine, find_machine, note_emulation

NONE = Machine(0, reason="torch is built without CUDA")


def on(monkeypatch, found):
    monkeypatch.setattr(machine, "find_machine", lambda: found)


@pytest.mark.parametrize(
    ("found", "settings", "message"),
    [
        (NONE, {"accelerator": "gpu"}, r"accelerator=gpu: there is none .*\(torch is built without CUDA\).* a CPU with"),
        (NONE, {"accelerator": "cuda"}, r"accelerator=cuda: there is none .*use trainer\.accelerator=auto or cpu$"),
        (NONE, {"accelerator": "mps"}, r"accelerator=mps: there is none"),
        (NONE, {"accelerator": "tpu"}, r"accelerator=tpu: there is none"),
        (Machine(2), {"accelerator": "mps"}, r"accelerator=mps: there is none .* and 2 GPUs;"),
        (Machine(0, apple_gpu=True), {"accelerator": "cuda"}, r"accelerator=cuda: there is none .* and an Apple GPU;"),
        (Machine(1), {"accelerator": "gpu", "devices": 2}, r"devices=2 is more than there are: .* and 1 GPU; use at most 1"),
        (Machine(1), {"devices": 2}, r"devices=2 is more than there are: .*, or trainer\.accelerator=cpu$"),
        (Machine(0, apple_gpu=True), {"devices": 2}, r"devices=2 is more than there are"),
        (NONE, {"precision": "16-mixed"}, r"precision=16-mixed needs a GPU; .*use trainer\.precision=32-true$"),
        (Machine(1), {"precision": "16-mixed", "accelerator": "cpu"}, r"precision=16-mixed needs a GPU"),
        (NONE, {"cuda_graphs": "true"}, r"cuda_graphs=true, but .* not on cpu; use trainer\.cuda_graphs=auto"),
        (Machine(2), {"cuda_graphs": "true", "devices": 2}, r"cuda_graphs=true, but DDP .* 2 processes"),
        (Machine(0, apple_gpu=True), {"compile": "true"}, r"compile=true, but .* not on mps; or use trainer\.compile=auto"),
    ],
)  # fmt: skip
def test_what_the_machine_lacks_is_refused_with_what_it_has(monkeypatch, found, settings, message):
    on(monkeypatch, found)
    with pytest.raises(InputError, match=message):
        check_machine(TrainerSpec(**settings))


@pytest.mark.parametrize(
    ("found", "settings"),
    [
        (NONE, {"devices": 4}),  # processes on a CPU
        (NONE, {"precision": "bf16-mixed"}),
        (Machine(2), {"accelerator": "gpu", "devices": 2, "precision": "16-mixed"}),
        (Machine(2), {"accelerator": "cpu", "devices": 4}),
        (Machine(0, apple_gpu=True), {"accelerator": "gpu"}),
        (Machine(0, tpu=True), {"accelerator": "tpu"}),
        (Machine(1), {"cuda_graphs": "true"}),
    ],
)
def test_what_the_machine_has_is_accepted(monkeypatch, found, settings):
    on(monkeypatch, found)
    check_machine(TrainerSpec(**settings))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("strategy=deepspeed", r"trainer\.strategy=deepspeed is unknown; use one of auto, ddp$"),
        ("strategy=fsdp", r"trainer\.strategy=fsdp is unknown; .*use one of auto, ddp"),
        ("accelerator=gpus", r"trainer\.accelerator=gpus is unknown; did you mean gpu\? \(use one of auto, cpu, gpu"),
        ("precision=64-true", r"trainer\.precision=64-true is unknown"),
        ("precision=transformer-engine", r"trainer\.precision=transformer-engine is unknown"),
    ],
)
def test_what_no_machine_can_do_is_refused(setting, message):
    with pytest.raises(InputError, match=message):
        load_config(["pipeline=singlestage", "task=demo", f"trainer.{setting}"])


@pytest.mark.parametrize(
    ("found", "bf16", "settings", "message"),
    [
        (NONE, False, [], None),
        (NONE, False, ["trainer.precision=bf16-mixed"], "trainer.precision=bf16-mixed: this CPU has no bf16 instructions"),
        (NONE, True, ["trainer.precision=bf16-mixed"], None),
        (Machine(1), False, ["trainer.precision=bf16-mixed"], "this GPU has no bf16 arithmetic"),
        (Machine(1), True, ["trainer.precision=bf16-mixed"], None),
        (Machine(1), True, ["trainer=gpu"], None),
        (
            NONE,
            False,
            ["task.augmentation.enabled=true", "task.augmentation.precision=bf16-mixed"],
            "task.augmentation.precision=bf16-mixed: this CPU",
        ),
    ],
)  # fmt: skip
def test_a_precision_that_is_emulated_is_noted(monkeypatch, caplog, found, bf16, settings, message):
    on(monkeypatch, found)
    monkeypatch.setattr(machine, "_cpu_has_bf16", lambda: bf16)
    monkeypatch.setattr(machine, "_gpu_has_bf16", lambda: bf16)
    with caplog.at_level(logging.WARNING):
        note_emulation(load_config(["pipeline=singlestage", "task=demo", *settings]))
    assert [message in record.getMessage() for record in caplog.records] == ([True] if message else [])


@pytest.mark.parametrize(
    ("found", "bf16", "settings", "precision"),
    [
        (NONE, True, [], "bf16-mixed"),
        (NONE, False, [], "32-true"),
        (Machine(1), True, [], "bf16-mixed"),
        (Machine(0, apple_gpu=True), True, [], "32-true"),
        (Machine(1), True, ["task.augmentation.precision=32-true"], "32-true"),
        (NONE, False, ["task.augmentation.precision=bf16-mixed"], "bf16-mixed"),
    ],
)
def test_augmentation_computes_in_bf16_where_the_processor_has_it(monkeypatch, found, bf16, settings, precision):
    on(monkeypatch, found)
    monkeypatch.setattr(machine, "read_cpu_fields", lambda: {"model name": "x"})
    monkeypatch.setattr(machine, "_cpu_has_bf16", lambda: bf16)
    monkeypatch.setattr(machine, "_gpu_has_bf16", lambda: bf16)
    assert augmentation_precision(load_config(["pipeline=singlestage", "task=demo", *settings])) == precision


def test_a_machine_tells_why_it_has_no_gpu(monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_machine().reason == "CUDA_VISIBLE_DEVICES="
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "is built without CUDA" in find_machine().reason


@pytest.mark.parametrize(
    "command", [["plan", "pipeline=singlestage"], ["run", "pipeline=singlestage"], ["evaluate", "model"]]
)
def test_every_command_refuses_what_the_machine_lacks(monkeypatch, capsys, tmp_path, command):
    on(monkeypatch, NONE)
    assert main([*command, "task=demo", f"run.dir={tmp_path}", "trainer.accelerator=gpu"]) == 2
    assert "trainer.accelerator=gpu: there is none" in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["trainer.precision=32-true", "trainer.devices=2", "trainer.precision=bf16-mixed"])
def test_the_settings_of_a_cpu_need_no_torch(setting):
    program = (
        "import sys\n"
        "from bitkd.api import check_before_imports\n"
        "from bitkd.config.load import load_config\n"
        "from bitkd.processes.machine import note_emulation\n"
        f"config = load_config(['pipeline=singlestage', 'task=demo', 'trainer.accelerator=cpu', '{setting}'])\n"
        "check_before_imports(config)\n"
        "note_emulation(config)\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_processor_is_described_by_the_instructions_of_low_bit_products(monkeypatch, tmp_path):
    flags = "fpu avx2 avx512f avx512bw avx_vnni avx512_bf16 avx512vbmi avx512_vbmi2 avx512_vnni amx_bf16 amx_int8"
    for text, described in (
        (
            f"model name\t: Some CPU\nflags\t\t: {flags}\n",
            "Some CPU (avx2, avx512, vnni, vbmi, bf16, amx_int8, amx_bf16)",
        ),
        ("model name\t: Old CPU\nflags\t: fpu sse\n", "Old CPU (no vector instructions that matter here)"),
    ):
        (tmp_path / "cpuinfo").write_text(text)
        monkeypatch.setattr(cpu, "INFO", tmp_path / "cpuinfo")
        assert machine.describe_cpu() == described
