"""The processor as Linux describes it."""

import pytest

from bitkd.engine import cpu


@pytest.mark.parametrize(
    ("text", "name", "flags"),
    [
        ("model name\t: Some CPU\nflags\t\t: avx2 fma\n\nmodel name\t: Another\nflags\t: none\n", "Some CPU", {"avx2", "fma"}),
        ("processor\t: 0\nFeatures\t: asimddp bf16\n", None, {"asimddp", "bf16"}),
        (None, None, set()),
    ],
)  # fmt: skip
def test_the_first_cores_name_and_features_are_read(text, name, flags, monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "INFO", tmp_path / "cpuinfo")
    if text is not None:
        cpu.INFO.write_text(text)
    assert cpu.read_cpu_fields().get("model name") == name
    assert cpu.read_cpu_flags() == flags
