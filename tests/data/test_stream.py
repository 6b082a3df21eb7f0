import itertools
import json

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from bitkd.data import stream
from bitkd.data.corpus_rows import StreamRows, is_held_out
from bitkd.data.documents import FileDocuments, HubCorpusSpec, HubDocuments
from bitkd.data.packing import Packer
from bitkd.data.stream import Position, Stream, StreamDataModule
from bitkd.errors import InputError
from tests.conftest import WORDS

COUNT = 300


@pytest.fixture
def documents(tmp_path, monkeypatch):
    """A corpus of COUNT documents of three words, no two alike."""
    monkeypatch.setattr(stream, "STREAM_BLOCK", 16)
    texts = [" ".join(WORDS[(i // 20**k) % 20] for k in range(3)) for i in range(COUNT)]
    (tmp_path / "corpus.txt").write_text("\n\n".join(texts))
    return FileDocuments([str(tmp_path / "corpus.txt")])


@pytest.fixture
def packer(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr("bitkd.data.packing.SHORT_SHARE", 0.0)  # a document is then a sequence
    return Packer(tiny_tokenizer, 16, segments=1)


def first_pass(stream, workers):
    """The sequences of the first pass of all readers of one rank."""
    rows, ended = [], set()
    for row in DataLoader(stream, batch_size=None, num_workers=workers):
        worker, epoch = row["position"][:2]
        if epoch:
            ended.add(int(worker))
            if len(ended) == max(1, workers):
                return rows
        else:
            rows.append(row["input_ids"])
    return rows


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (2, 0), (1, 2), (2, 2), (4, 0)])
def test_readers_together_read_every_document_once(documents, packer, tiny_tokenizer, ranks, workers):
    rows = []
    for rank in range(ranks):
        rows += first_pass(Stream(documents, packer, 0, rank, ranks, workers), workers)
    read = [tiny_tokenizer.decode(row, skip_special_tokens=True) for row in rows]
    expected = [text for i, text in enumerate(documents.read()) if not is_held_out(i)]
    assert sorted(read) == sorted(expected)
    assert read != expected


def test_a_second_pass_is_shuffled_anew(documents, packer):
    rows = list(itertools.islice(Stream(documents, packer, 0), 2 * (COUNT - COUNT // 50)))
    first, second = ([row["input_ids"] for row in rows if row["position"][1] == epoch] for epoch in (0, 1))
    assert sorted(first) == sorted(second)
    assert first != second


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("taken", [1, 7, 80])
def test_a_resumed_stream_goes_on_with_the_next_sequence(documents, tiny_tokenizer, workers, taken):
    def batches(start=0, positions=None):
        stream = Stream(documents, Packer(tiny_tokenizer, 16), 0, 0, 1, workers, start, positions)
        return iter(DataLoader(stream, batch_size=4, collate_fn=lambda rows: rows, num_workers=workers))

    whole = list(itertools.islice(batches(), taken + 6))
    positions = {}
    for batch in whole[:taken]:
        reader, *place = batch[-1]["position"]
        positions[reader] = Position(*place)
    assert list(itertools.islice(batches(taken, positions), 6)) == whole[taken:]


def test_too_few_documents_for_all_readers_are_refused(documents, packer):
    with pytest.raises(InputError, match="no block of 16 documents for each of 40 readers"):
        next(iter(Stream(documents, packer, 0, 39, 40)))


def test_held_out_documents_validate(documents, tiny_tokenizer):
    rows = StreamRows(documents, tiny_tokenizer, max_length=16)
    module = StreamDataModule(rows)
    assert rows.num_rows["dev"] >= COUNT // 50
    batch = next(iter(module.train_dataloader()))
    assert batch["position"].shape == (4,)


def test_files_are_not_held_in_memory_and_are_read_from_any_document_on(documents):
    assert list(documents.read(290)) == list(documents.read())[290:]


@pytest.mark.parametrize("streaming", [False, True])
def test_a_dataset_of_the_hub_is_read_from_any_row_on(tmp_path, monkeypatch, streaming):
    # A folder of files stands in for a repository: datasets loads both alike.
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"body": f"row {i}"}) + "\n" for i in range(20)))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("bitkd.data.hub.hub_problem", lambda: None)
    monkeypatch.setattr("bitkd.data.documents.hub_revision", lambda path: None)
    documents = HubDocuments(HubCorpusSpec(str(tmp_path), text="body"), streaming)
    assert list(documents.read(17)) == ["row 17", "row 18", "row 19"]
    assert len(list(documents.read())) == 20
    assert (
        documents.fingerprint()
        != HubDocuments(HubCorpusSpec(str(tmp_path), "other", text="body"), streaming).fingerprint()
    )
    with pytest.raises(InputError, match=r"has no column text; it has \['body'\]"):
        list(HubDocuments(HubCorpusSpec(str(tmp_path)), streaming).read())
    with pytest.raises(InputError, match="has no split test; it has train"):
        list(HubDocuments(HubCorpusSpec(str(tmp_path), split="test", text="body"), streaming).read())


@pytest.mark.parametrize("files", [1, 2])
def test_loader_processes_share_a_streamed_dataset_of_the_hub(tmp_path, packer, monkeypatch, files):
    monkeypatch.setattr(stream, "STREAM_BLOCK", 8)
    for k in range(files):
        lines = [
            json.dumps({"text": " ".join(WORDS[(i // 20**p) % 20] for p in range(3))})
            for i in range(64 * k, 64 * k + 64)
        ]
        (tmp_path / f"train-{k}.jsonl").write_text("\n".join(lines) + "\n")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("bitkd.data.hub.hub_problem", lambda: None)
    monkeypatch.setattr("bitkd.data.documents.hub_revision", lambda path: None)
    documents = HubDocuments(HubCorpusSpec(str(tmp_path)), streaming=True)
    rows = first_pass(Stream(documents, packer, 0, 0, 1, 2), 2)
    assert len(rows) == len({tuple(row) for row in rows}) == 64 * files - sum(is_held_out(i) for i in range(64 * files))


def test_masking_is_that_of_pretraining(tiny_tokenizer):
    document = [tiny_tokenizer.convert_tokens_to_ids("dog")] * 20_000
    plain, masked = (
        [
            row["input_ids"]
            for row in Packer(tiny_tokenizer, 64, masking=share).pack([document], np.random.default_rng(0))
        ]
        for share in (0.0, 0.15)
    )
    flat = torch.tensor([*itertools.chain(*masked)])
    special = torch.isin(flat, torch.tensor([tiny_tokenizer.cls_token_id, tiny_tokenizer.sep_token_id]))
    words = flat[~special]
    assert (torch.tensor([*itertools.chain(*plain)]) == tiny_tokenizer.mask_token_id).sum() == 0
    assert float((words == tiny_tokenizer.mask_token_id).float().mean()) == pytest.approx(0.12, abs=0.01)
    assert float((words != document[0]).float().mean()) == pytest.approx(0.135, abs=0.01)


@pytest.mark.parametrize(("masking", "message"), [(1.0, "outside 0 to 1"), (-0.1, "outside 0 to 1")])
def test_masking_that_cannot_be_is_refused(tiny_tokenizer, masking, message):
    with pytest.raises(InputError, match=message):
        Packer(tiny_tokenizer, 16, masking=masking)
