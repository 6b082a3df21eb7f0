"""Rows of sentence similarity: numbers become cosines, and a test set's cosines become numbers again."""

from dataclasses import replace

import pytest
import torch

from bitkd.data.similarity_rows import SimilarityRows
from bitkd.data.task_rows import TaskRows
from bitkd.data.tasks import FilesSpec, SimilaritySpec, TaskSpec
from bitkd.errors import InputError

TASK = TaskSpec(
    name="pairs",
    kind="sentence_similarity",
    text=["first", "second"],
    metric="spearman",
    metrics=["spearman", "pearson"],
    similarity=SimilaritySpec(lowest=1, highest=5),
    files=FilesSpec(dev={"dev": "dev.tsv"}, label="score"),
)


@pytest.fixture
def rows(tiny_tokenizer, tmp_path):
    def make(*scores):
        lines = [f"a dog runs\tthe big red cat sleeps\t{score}" for score in scores]
        for name in ("train", "dev"):
            (tmp_path / f"{name}.tsv").write_text("\n".join(["first\tsecond\tscore", *lines]) + "\n")
        return SimilarityRows(TASK, tiny_tokenizer, tmp_path, max_length=16)

    return make


def test_labels_are_cosines_and_texts_are_apart(rows, tiny_tokenizer):
    found = rows(1, 5, 2.5)
    assert found.train["label"][:] == [0.0, 1.0, 0.375]
    row = found.dev["dev"][0]
    for name, text in (("input_ids", "a dog runs"), ("input_ids_b", "the big red cat sleeps")):
        assert row[name] == tiny_tokenizer(text)["input_ids"]
    assert row["length"] == 7
    texts = torch.tensor([[1.0, 0], [1, 0], [0, 1], [3, 4]])  # cosines 0 and 0.6, of the rows 1 and 0
    submission = found.submission("test", [(torch.tensor([1, 0]), texts)])
    assert submission.text == "index\tprediction\n0\t3.400\n1\t1.000\n"


def test_a_label_outside_the_range_is_refused(rows):
    with pytest.raises(InputError, match=r"train.tsv:3: label 0.5 is outside task.similarity.lowest=1 to .highest=5"):
        _ = rows(3, 0.5).train


def test_rows_that_are_read_together_are_not_taken_from_the_cache(rows, tiny_tokenizer, tmp_path):
    rows(1, 0)
    task = replace(TASK, similarity=SimilaritySpec(lowest=0, highest=1))  # equal labels in both kinds
    together = replace(task, kind="text_classification", files=replace(TASK.files, labels_as="number"))
    columns = [
        make(spec, tiny_tokenizer, tmp_path, 16, tmp_path / "cache").train.column_names
        for make, spec in ((TaskRows, together), (SimilarityRows, task))
    ]
    assert ["input_ids_b" in names for names in columns] == [False, True]
