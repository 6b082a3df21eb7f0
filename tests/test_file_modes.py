"""Files follow the umask: a shared store can be read by the group, a private one by nobody else."""

import os
import stat

import pytest

from bitkd.cli import main


@pytest.fixture(params=[0o27], ids=oct)
def mask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def modes_under(folder, mask):
    """Paths whose mode is not what the umask gives, with that mode."""
    wrong = {}
    for path in folder.rglob("*"):
        mode = stat.S_IMODE(path.lstat().st_mode)
        expected = (0o777 if path.is_dir() else 0o666) & ~mask
        if not path.is_symlink() and mode != expected:
            wrong[str(path.relative_to(folder))] = oct(mode)
    return wrong


def test_a_run_and_its_report_follow_the_umask(settings, tmp_path, mask, capsys):
    assert main(["run", *settings(tmp_path / "runs", "singlestage", "checkpoint.every_steps=1")]) == 0
    assert main(["plan", *settings(tmp_path / "runs", "singlestage")]) == 0
    run = tmp_path / "runs" / "rte" / "singlestage"
    assert main(["compare", str(run), "--no-latency", "--out", str(tmp_path / "reports" / "rte")]) == 0
    capsys.readouterr()
    assert not modes_under(tmp_path, mask)
