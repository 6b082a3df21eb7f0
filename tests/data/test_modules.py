import math
import socket
import time

import pytest
import torch

from bitkd.config.load import load_config
from bitkd.data.corpus import CorpusDataModule
from bitkd.data.documents import FileDocuments, read_documents
from bitkd.data.hub import load_hub_dataset, load_tokenizer, resolve_pretrained
from bitkd.data.metrics import build_metrics, primary_score
from bitkd.data.task import TaskDataModule
from bitkd.data.tasks import FilesSpec, HubSpec, TaskSpec
from bitkd.errors import InputError


@pytest.fixture
def rte(tiny_tokenizer, tiny_task):
    task = load_config(["task=rte"], require=("task",)).task
    module = TaskDataModule(task, tiny_tokenizer, str(tiny_task), max_length=20, batch_size=8, total_batches=24)
    module.setup("fit")
    return module


def test_rows_are_counted_and_none_is_lost(rte):
    assert rte.num_rows == {"train": 96, "dev": 33}
    seen = [i for batch in rte.train_dataloader() for i in batch["index"].tolist()]
    assert sorted(seen[:96]) == list(range(96))
    [dev] = rte.val_dataloader()
    assert sorted(i for batch in dev for i in batch["index"].tolist()) == list(range(33))


def test_batches_are_padded_to_their_own_length(rte):
    for batch in rte.train_dataloader():
        width = batch["input_ids"].shape[1]
        longest = int(batch["attention_mask"].sum(1).max())
        assert width % 8 == 0
        assert width - longest < 8
        assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "labels", "index"}


def test_over_long_rows_are_cut_and_counted(rte):
    assert 0 < sum(rte.truncated.values()) < 129
    assert all(length <= 20 for length in rte.train_rows["length"])


def test_tokenized_rows_are_kept_and_used_again(rte, tiny_tokenizer, tiny_task, tmp_path, monkeypatch):
    def load(max_length=20):
        module = TaskDataModule(rte.task, tiny_tokenizer, str(tiny_task), max_length, cache_dir=str(tmp_path))
        module.setup("fit")
        return module

    first = load()
    assert first.train_rows[:] == rte.train_rows[:]
    assert sorted(file.name.split("-")[1] for file in tmp_path.iterdir()) == ["dev", "train"]
    monkeypatch.setattr(type(tiny_tokenizer), "__call__", None)  # the second time nothing may be tokenized
    second = load()
    assert second.train_rows[:] == rte.train_rows[:]
    assert second.truncated == rte.truncated
    with pytest.raises(TypeError, match="'NoneType' object is not callable"):
        load(max_length=16)


def test_a_loader_does_not_touch_the_global_random_state(rte):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(iter(rte.train_dataloader()))
    next(iter(rte.val_dataloader()[0]))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_late_start_gives_the_tail(rte):
    whole = [batch["index"].tolist() for batch in rte.train_dataloader()]
    rte.start_batch = 5
    assert [batch["index"].tolist() for batch in rte.train_dataloader()] == whole[5:]


def test_the_fingerprint_is_of_the_content(rte, tiny_tokenizer, tiny_task, tmp_path):
    for name in ("train", "dev"):
        (tmp_path / f"{name}.tsv").write_bytes((tiny_task / "RTE" / f"{name}.tsv").read_bytes())
    moved = TaskDataModule(rte.task, tiny_tokenizer, str(tmp_path))
    assert moved.fingerprint() == rte.fingerprint()
    with open(tmp_path / "dev.tsv", "a") as stream:
        stream.write("99\ta\tb\tentailment\n")
    assert TaskDataModule(rte.task, tiny_tokenizer, str(tmp_path)).fingerprint() != rte.fingerprint()


@pytest.mark.parametrize(
    "change",
    ["task.labels=[not_entailment,entailment]", "task.files.text=[sentence2,sentence1]", "task.metrics=[accuracy,f1]"],
)
def test_the_fingerprint_is_of_the_meaning_too(change, rte, tiny_tokenizer, tiny_task):
    task = load_config(["task=rte", change], require=("task",)).task
    assert TaskDataModule(task, tiny_tokenizer, str(tiny_task)).fingerprint() != rte.fingerprint()


def test_a_task_that_is_nowhere_says_so(tiny_tokenizer):
    task = TaskSpec("mine", ["a"], ["x", "y"], files=FilesSpec(dev={"dev": "dev.tsv"}))
    module = TaskDataModule(task, tiny_tokenizer)
    with pytest.raises(InputError, match=r"task mine is not on the hub; give its files with data\.dir=FOLDER"):
        module.setup("fit")


def corpus(tokenizer, folder, **settings):
    module = CorpusDataModule(FileDocuments([str(folder / "corpus.txt")]), tokenizer, **({"max_length": 32} | settings))
    module.setup("fit")
    return module


def test_documents_are_packed_as_pairs_with_token_types(tiny_tokenizer, tiny_task):
    module = corpus(tiny_tokenizer, tiny_task)
    sep, cls = tiny_tokenizer.sep_token_id, tiny_tokenizer.cls_token_id
    lengths = []
    for row in module.train_rows:
        ids, types = row["input_ids"], row["token_type_ids"]
        assert ids[0] == cls
        assert ids.count(sep) == 2
        assert ids[-1] == sep
        first_end = ids.index(sep)
        assert types == [0] * (first_end + 1) + [1] * (len(ids) - first_end - 1)
        assert len(ids) == row["length"] <= 32
        lengths.append(len(ids))
    assert sum(length == 32 for length in lengths) > len(lengths) / 2
    assert min(lengths) < 25


def test_packing_reads_every_token_once_as_a_or_as_its_continuation(tiny_tokenizer, tiny_task):
    module = corpus(tiny_tokenizer, tiny_task, segments=1)
    packed = [i for rows in (module.train_rows, module.dev_rows["dev"]) for row in rows for i in row["input_ids"][1:-1]]
    documents = list(read_documents(tiny_task / "corpus.txt"))
    plain = [i for ids in tiny_tokenizer(documents, add_special_tokens=False)["input_ids"] for i in ids]
    assert packed == plain


def test_packing_is_the_same_twice_and_apart_from_the_training_seed(tiny_tokenizer, tiny_task):
    first, second = corpus(tiny_tokenizer, tiny_task), corpus(tiny_tokenizer, tiny_task, seed=9)
    assert first.train_rows["input_ids"][:] == second.train_rows["input_ids"][:]
    assert first.fingerprint() == second.fingerprint()


@pytest.mark.parametrize(
    ("content", "documents"),
    [
        ("a b\nc\n\nd\n", ["a b c", "d"]),
        (" = M = \n a \n = N = \n b \n", ["= M = a", "= N = b"]),
        (" = One = \n a \n\n = = Part = = \n b \n = Two = \n c \n", ["= One = a = = Part = = b", "= Two = c"]),
        ("one line\nanother\n", ["one line", "another"]),
    ],
)
def test_documents_are_told_apart(content, documents, tmp_path):
    (tmp_path / "x.txt").write_text(content)
    assert list(read_documents(tmp_path / "x.txt")) == documents


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: [str(folder / "nowhere.txt")], "there is no such file"),
        (lambda folder: [str(folder)], r"the folder has no \.txt file"),
    ],
)
def test_a_corpus_that_is_not_there_is_named(make, message, tiny_tokenizer, tmp_path):
    with pytest.raises(InputError, match=message):
        CorpusDataModule(FileDocuments(make(tmp_path)), tiny_tokenizer)


def test_an_empty_corpus_is_refused(tiny_tokenizer, tmp_path):
    (tmp_path / "x.txt").write_text("\n\n")
    with pytest.raises(InputError, match="holds 0 documents"):
        CorpusDataModule(FileDocuments([str(tmp_path)]), tiny_tokenizer).setup("fit")


def test_a_byte_of_a_corpus_that_is_not_utf8_is_named_by_line(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfone\ntwo \xff\n")
    with pytest.raises(InputError, match=r"x\.txt:2: a byte is not UTF-8 \(0xff\)"):
        list(read_documents(tmp_path / "x.txt"))


def test_an_undefined_score_can_be_beaten():
    task = load_config(["task=stsb"], require=("task",)).task
    metrics = build_metrics(task)
    metrics.update(torch.ones(4), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    values = {key: float(value) for key, value in metrics.compute().items()}
    assert math.isnan(values["pearson"])
    assert primary_score(task, values) == 0


@pytest.mark.parametrize("label", [0, 1])
def test_matthews_correlation_of_a_constant_prediction_is_zero(label):
    task = TaskSpec(labels=["no", "yes"], metric="matthews", metrics=["matthews"])
    metrics = build_metrics(task)
    metrics.update(torch.full((10,), label), torch.tensor([0, 1, 1, 1, 0, 1, 1, 1, 1, 1]))
    assert float(metrics.compute()["matthews"]) == 0
    metrics.reset()
    metrics.update(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1, 0, 0]))
    assert float(metrics.compute()["matthews"]) == pytest.approx(0.57735, abs=1e-5)


def test_metrics_by_hand():
    values = {}
    for name in ("mrpc", "cola", "stsb"):
        task = load_config([f"task={name}"], require=("task",)).task
        metrics = build_metrics(task)
        if name == "stsb":
            metrics.update(torch.tensor([1.0, 2.0, 3.0, 5.0]), torch.tensor([1.0, 2.0, 4.0, 3.0]))
        else:
            metrics.update(torch.tensor([1, 1, 0, 0, 1]), torch.tensor([1, 0, 0, 1, 1]))
        values[name] = {key: float(value) for key, value in metrics.compute().items()}
        values[name]["score"] = primary_score(task, values[name])
    # 2 true positives, 1 false positive, 1 false negative, 1 true negative
    assert values["mrpc"]["accuracy"] == pytest.approx(3 / 5)
    assert values["mrpc"]["f1"] == pytest.approx(2 / 3)
    assert values["cola"]["score"] == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))
    assert values["stsb"]["spearman"] == pytest.approx(0.8)
    assert values["stsb"]["score"] == pytest.approx((values["stsb"]["pearson"] + values["stsb"]["spearman"]) / 2)


def test_a_hub_that_cannot_be_reached_is_said_within_twenty_seconds(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    with pytest.raises(InputError, match=r"model\.pretrained=no/such is no local folder.*the hub cannot be reached"):
        resolve_pretrained("no/such")
    with pytest.raises(InputError, match=r"no-such/glue/rte cannot be loaded: the hub cannot be reached.*data\.dir="):
        load_hub_dataset("no-such/glue", "rte")
    assert time.monotonic() - began < 20


def test_a_hub_that_takes_the_connection_and_says_nothing_is_given_up_on(monkeypatch):
    import datasets

    monkeypatch.setattr("bitkd.data.hub.PROBE_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(InputError, match=r"the hub cannot be reached \(.*model\.pretrained=FOLDER"):
            resolve_pretrained("no/such")
        assert time.monotonic() - began < 5
        with pytest.raises(InputError, match=r"the hub cannot be reached \(.*data\.dir="):
            load_hub_dataset("no-such/glue", "rte")
    assert not datasets.config.HF_HUB_OFFLINE


def test_a_resolver_that_hangs_is_given_up_on(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    monkeypatch.setattr("bitkd.data.hub.PROBE_SECONDS", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(3))
    began = time.monotonic()
    with pytest.raises(InputError, match=r"the hub cannot be reached \(no answer in 0\.2 s\)"):
        resolve_pretrained("no/such")
    assert time.monotonic() - began < 2


def test_a_folder_without_tokenizer_files_has_no_tokenizer(tiny_bert, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((tiny_bert / name).read_bytes())
    with pytest.raises(InputError, match=r"has no tokenizer \(none of \['tokenizer\.json'"):
        load_tokenizer(tmp_path)


def test_local_paths_are_looked_at_first(tiny_bert, tmp_path):
    assert resolve_pretrained(str(tiny_bert)) == tiny_bert.resolve()
    with pytest.raises(InputError, match="there is no such folder"):
        resolve_pretrained(str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match="has no tokenizer"):
        load_tokenizer(tmp_path)


def test_hub_classes_are_mapped_by_name(tiny_tokenizer, monkeypatch):
    import datasets

    features = datasets.Features(
        {
            "text": datasets.Value("string"),
            "label": datasets.ClassLabel(names=["contradiction", "neutral", "entailment"]),
        }
    )
    split = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 2]}, features=features)
    found = datasets.DatasetDict(train=split, validation=split)
    monkeypatch.setattr("bitkd.data.task.load_hub_dataset", lambda path, name: found)
    hub = HubSpec("some/where", dev={"dev": "validation"})
    task = TaskSpec("mine", ["text"], ["entailment", "neutral", "contradiction"], hub=hub)
    module = TaskDataModule(task, tiny_tokenizer)
    module.setup("fit")
    assert module.train_rows["label"][:] == [2, 1, 0]
    task.labels = ["entailment", "neutral", "other"]
    with pytest.raises(InputError, match="label 0 is outside the task's set"):
        TaskDataModule(task, tiny_tokenizer).setup("fit")


def hub_task(monkeypatch, found_labels, **spec):
    import datasets

    split = datasets.Dataset.from_dict({"text": ["a"] * len(found_labels), "label": found_labels})
    found = datasets.DatasetDict(train=split, validation=split)
    monkeypatch.setattr("bitkd.data.task.load_hub_dataset", lambda path, name: found)
    return TaskSpec("mine", ["text"], hub=HubSpec("some/where", dev={"dev": "validation"}), **spec)


def test_hub_labels_may_be_names(tiny_tokenizer, monkeypatch):
    module = TaskDataModule(hub_task(monkeypatch, ["no", "yes"], labels=["yes", "no"]), tiny_tokenizer)
    module.setup("fit")
    assert module.train_rows["label"][:] == [1, 0]


@pytest.mark.parametrize(
    ("labels", "spec", "message"),
    [
        ([0, None], {"labels": ["yes", "no"]}, "label None is outside the task's set"),
        (["yes", "maybe"], {"labels": ["yes", "no"]}, "label 'maybe' is outside the task's set"),
        ([0, -1], {"labels": ["yes", "no"]}, "label -1 is outside the task's set"),
        ([], {"labels": ["yes", "no"]}, "train has no rows"),
        (
            [1.0, math.nan],
            {"metric": "pearson", "metrics": ["pearson"], "files": FilesSpec(labels_as="number")},
            "train, row 1: label nan is not a finite number",
        ),
    ],
)
def test_a_bad_hub_label_is_named(labels, spec, message, tiny_tokenizer, monkeypatch):
    with pytest.raises(InputError, match=message):
        TaskDataModule(hub_task(monkeypatch, labels, **spec), tiny_tokenizer).setup("fit")
