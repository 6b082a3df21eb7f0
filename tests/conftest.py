"""What several folders of tests share: a tiny tokenizer, a tiny BERT, a tiny task in files.

Fixtures import the libraries: pytest-xdist's first process reads this file too, and runs no test.
"""

import json
import os
import shutil
from functools import partial

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as bitkd.cli does
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import pytest

WORDS = ["a", "the", "dog", "cat", "bird", "sees", "likes", "runs", "sleeps", "not", "big", "small"]
WORDS += ["red", "blue", "fast", "old", "new", "and", "with", "in"]


def pytest_configure(config):
    """Compiled engines stay in pytest's cache folder: processes and later runs share them."""
    os.environ.setdefault("BITKD_CACHE", str(config.cache.mkdir("engine")))


def pytest_collection_modifyitems(items):
    """Those with processes of their own first: they are the longest, and one worker then starts the server that forks."""
    items.sort(key=lambda item: not hasattr(getattr(item, "module", None), "Children"))


@pytest.fixture
def no_host_reads():
    """Makes a context in which nothing may wait for a device; it works on a CPU."""
    from tests.host_reads import forbid

    return forbid


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A WordPiece tokenizer over WORDS, arranged as BERT's."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [
        *names,
        *WORDS,
        ".",
        ",",
        '"',
        *"bcdefghijklmnopqrstuvwxyz",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
    ]
    backend = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory, tiny_tokenizer):
    """The folder of a random BERT with 4 layers of 4 heads, hidden size 32."""
    import torch
    from transformers import BertConfig, BertModel

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.1,
    )
    BertModel(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_task(tmp_path_factory):
    """A folder with RTE's files in the official layout, 96 rows to train and 33 in dev, and a corpus beside them."""
    import torch

    folder = tmp_path_factory.mktemp("glue")
    generator = torch.Generator().manual_seed(1)

    def sentence():
        length = int(torch.randint(2, 12, (), generator=generator))
        return " ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator))

    (folder / "RTE").mkdir()
    for name, rows in (("train", 96), ("dev", 33)):
        lines = ["index\tsentence1\tsentence2\tlabel"]
        for i in range(rows):
            first, second = sentence(), sentence()
            label = "entailment" if len(first) > len(second) else "not_entailment"
            lines.append(f"{i}\t{first}\t{second}\t{label}")
        (folder / "RTE" / f"{name}.tsv").write_text("\n".join(lines) + "\n")
    documents = ["\n".join(sentence() for _ in range(6)) for _ in range(40)]
    (folder / "corpus.txt").write_text("\n\n".join(documents))
    return folder


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
    from bitkd.config.load import load_config
    from bitkd.pipeline.runner import run

    runs = tmp_path_factory.mktemp("finished")
    for pipeline in ("multistage", "singlestage"):
        run(load_config(make_settings(tiny_bert, tiny_task, runs, pipeline)), Lines())
    return runs


@pytest.fixture
def runs(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "runs", symlinks=True)


def read_record(runs, pipeline, stage):
    """What an artifact remembers of its training, times aside: cost, scores on the way, and every row's prediction."""
    folder = runs / "rte" / pipeline / stage
    record = json.loads((folder / "stage.json").read_text())
    return [record["flops"], record["curve"], record["checksums"].get("predictions.safetensors")]


def read_weights(runs, pipeline="singlestage"):
    """The bytes of every stage's weights in a finished run."""
    folder = runs / "rte" / pipeline
    names = json.loads((folder / "manifest.json").read_text())["artifacts"]
    return {name: (folder / name / "model.safetensors").read_bytes() for name in names}


@pytest.fixture
def kind_of_a_study(monkeypatch):
    """The kind of stage that the quantizers' study adds, which some records in experiments/ name."""
    from bitkd.stages.kinds import KINDS
    from experiments.quantizers import subln

    monkeypatch.setitem(KINDS, subln.NAME, subln.KIND)
