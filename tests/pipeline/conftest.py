import shutil
from functools import partial

import pytest

from bitkd.config.load import load_config
from bitkd.pipeline.runner import run


class Lines:
    """A console that remembers what it printed."""

    def __init__(self):
        self.lines = []

    def print(self, text):
        self.lines.append(str(text))


@pytest.fixture
def console():
    return Lines()


def make_settings(tiny_bert, tiny_task, runs, pipeline="singlestage", *more):
    """Overrides for a run of a few steps on local files."""
    return [
        f"pipeline={pipeline}",
        "task=rte",
        f"run.dir={runs}",
        f"data.dir={tiny_task}",
        f"model.pretrained={tiny_bert}",
        f"data.corpus=[{tiny_task / 'corpus.txt'}]",
        "data.max_length=32",
        "data.importance_rows=16",
        "train.max_steps=4",
        "train.batch_size=8",
        "train.eval_every=2",
        "train.lr=1e-2",
        "trainer.accelerator=cpu",
        *more,
    ]


@pytest.fixture
def settings(tiny_bert, tiny_task):
    return partial(make_settings, tiny_bert, tiny_task)


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny_bert, tiny_task):
    """A run folder in which both pipelines are finished; tests copy it before they change it."""
    runs = tmp_path_factory.mktemp("finished")
    for pipeline in ("multistage", "singlestage"):
        run(load_config(make_settings(tiny_bert, tiny_task, runs, pipeline)), Lines())
    return runs


@pytest.fixture
def runs(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "runs", symlinks=True)
