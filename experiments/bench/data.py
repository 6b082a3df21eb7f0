"""Speed and memory of the data path (`make bench SUITE=data`). Speeds are ratios of processor time of one thread, measured in
one run.

Models have the shape of MiniLM-L6 (6 layers, hidden size 384) and random weights, texts are random words in the lengths of
MRPC and SST-2: nothing is downloaded.
"""

import itertools
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as bitkd.cli does
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from figures import Result, report
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, PreTrainedTokenizerFast

from bitkd.config.load import load_config
from bitkd.data.augment.augmenter import Augmenter, load_shards, write_shard
from bitkd.data.augment.candidates import MaskedLMCandidates, load_masked_lm
from bitkd.data.augment.words import Sentence
from bitkd.data.batches import LoaderSpec
from bitkd.data.modules import RowsDataModule
from bitkd.data.sampler import TrainBatchSampler
from bitkd.data.tasks import AugmentSpec
from bitkd.data.tokenized import Batches, Padding, lengths_of
from bitkd.processes.machine import augmentation_precision

MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
TOKENS = {
    "MRPC": [19, 32, 36, 39, 41, 44, 45, 47, 50, 51, 53, 55, 57, 59, 61, 62, 64, 67, 70, 74, 103],
    "SST-2": [3, 4, 4, 5, 6, 6, 7, 8, 8, 9, 10, 11, 13, 14, 16, 18, 20, 23, 27, 33, 66],
}
"""Tokens of the training rows (bert-base-uncased's vocabulary), in steps of 5 % of the rows."""

ROWS = {"MRPC": 3668, "SST-2": 67349}
BATCH = 32
REPEATS = 3
SIZES = (1_000, 10_000, 100_000, 500_000)
FILE_ROWS = 20_000
"""Rows of a file: about as many as a shard of augmented rows has."""

BATCHES, ROUNDS = 100, 15
MILLION = 1_000_000
MIB = 2**20
WORDS = 28_000


def main() -> int:
    torch.set_num_threads(1)
    return report("data", (batch_assembly, augmentation_speed, bucketed_batches, waiting_for_data, million_rows))


def batch_assembly() -> Iterator[Result]:
    """Making batches of rows in the training sampler's order, from files that were read once before."""
    padding = Padding(("input_ids", "token_type_ids", "attention_mask"), {})
    with tempfile.TemporaryDirectory() as folder:
        arms = {}
        for count in SIZES:
            rows = write_rows(Path(folder) / str(count), count)
            arms[count] = Batches(rows, padding), iter(TrainBatchSampler(lengths_of(rows), BATCH, 2**40, 0))
            for start in range(0, count - BATCH, BATCH):
                arms[count][0].rows[start : start + BATCH].combine_chunks()
        rounds = []
        for _ in range(ROUNDS):
            times = []
            for batches, sampler in arms.values():
                chosen = list(itertools.islice(sampler, BATCHES))
                batches[chosen[0]]
                times.append(seconds(lambda: [batches[rows] for rows in chosen]) / BATCHES)  # noqa: B023
            rounds.append(times)
    milliseconds = 1000 * np.median(rounds, axis=0)
    relative = np.median(rounds / np.mean(rounds, axis=1, keepdims=True), axis=0)
    for count, time_of in zip(SIZES, milliseconds):
        yield f"a batch of {BATCH} x 64, of {count:,} rows", float(time_of), "ms", ("<=", 0.5)
    yield (
        "time of a row, of 1,000 to 500,000 rows: largest difference from the mean",
        100 * float(np.abs(relative - 1).max()),
        "%",
        ("<=", 5),
    )


def write_rows(folder: Path, count: int) -> Dataset:
    """Rows of 57 to 64 tokens in files like those of augmented rows, of one record batch each."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for start in range(0, count, FILE_ROWS):
        rows = min(FILE_ROWS, count - start)
        lengths = random.integers(57, 65, rows)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
        tokens = {
            "input_ids": random.integers(5, 1000, lengths.sum(), np.int32),
            "token_type_ids": np.zeros(lengths.sum(), np.int8),
        }
        columns = {name: pa.ListArray.from_arrays(offsets, pa.array(values)) for name, values in tokens.items()}
        numbers = np.arange(start, start + rows)
        table = pa.table({**columns, "length": lengths, "label": numbers % 2, "index": numbers})
        file = folder / f"shard-{start:06}.arrow"
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, rows)
    return load_shards(folder)


def augmentation_speed() -> Iterator[Result]:
    """Masked-LM candidates, batched, against one unbatched forward per word, as published."""
    tokenizer, words = make_tokenizer()
    random = np.random.default_rng(0)
    sentences = []
    for length in random.integers(12, 29, 24).tolist():
        chosen = sorted(random.choice(length, round(length * 0.55), replace=False).tolist())
        sentences.append(Sentence([words[i] for i in random.integers(0, len(words), length)], chosen))
    few = sentences[::8]
    own = augmentation_precision(load_config(["pipeline=singlestage", "task=demo", "trainer.accelerator=cpu"]))
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        config = BertConfig(vocab_size=len(tokenizer), initializer_range=0.05, **MINILM)
        BertForMaskedLM(config).save_pretrained(folder)
        model = BertForMaskedLM.from_pretrained(folder).eval()
        batched = {
            precision: MaskedLMCandidates(load_masked_lm(Path(folder)), tokenizer, 15, Nothing(), precision)
            for precision in dict.fromkeys(["32-true", own])
        }

        def published(precision: str) -> list[dict[int, list[str]]]:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                return [one_by_one(model, tokenizer, sentence) for sentence in few]

        assert published("32-true") == batched["32-true"].find(few)
        rounds: list[dict[str, tuple[float, float]]] = []
        for _ in range(REPEATS):
            rounds.append({})
            for precision, finder in batched.items():
                slow = seconds(lambda: published(precision)) / len(few)  # noqa: B023
                rounds[-1][precision] = slow, seconds(lambda: finder.find(sentences)) / len(sentences)  # noqa: B023
    for mine, theirs, target in (("32-true", "32-true", 3.9), (own, "32-true", 10), (own, own, None)):
        if mine == own == "32-true" and target != 3.9:
            continue
        yield (
            f"augmentation: sentences per second, batched in {mine} / one forward per word in {theirs}",
            statistics.median(times[theirs][0] / times[mine][1] for times in rounds),
            "x",
            (">=", target) if target else None,
        )
    if own == "32-true":
        print("    augmentation: this processor has no bf16 instructions, so auto is 32-true", flush=True)


class Nothing:
    """No candidates for words of several pieces."""

    def find(self, sentences: list[Sentence]) -> list[dict[int, list[str]]]:
        return [{} for _ in sentences]


@torch.no_grad()
def one_by_one(model: BertForMaskedLM, tokenizer: PreTrainedTokenizerFast, sentence: Sentence) -> dict[int, list[str]]:
    found = {}
    for i in sentence.replaceable:
        masked = [*sentence.words[:i], "[MASK]", *sentence.words[i + 1 :]]
        ids = tokenizer.convert_tokens_to_ids(["[CLS]", *masked, "[SEP]", *sentence.words, "[SEP]"])
        types = [0] * (len(masked) + 2) + [1] * (len(sentence.words) + 1)
        logits = model(torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits
        best = tokenizer.convert_ids_to_tokens(logits[0, i + 1].argsort(descending=True)[:215].tolist())
        found[i] = [token for token in best if not token.startswith(("##", "["))][:15]
    return found


def bucketed_batches() -> Iterator[Result]:
    """A training step on bucketed batches against one on the same rows padded to 128."""
    model = BertForSequenceClassification(BertConfig(**MINILM)).train()
    for task, target in (("MRPC", 0.5), ("SST-2", 0.25)):
        batches = [batch for _, batch in zip(range(4), make_module(task).train_dataloader())]
        padded = [pad_to(batch, 128) for batch in batches]
        own = seconds(lambda: [step(model, batch) for batch in batches])  # noqa: B023 - called at once
        ratio = own / seconds(lambda: [step(model, batch) for batch in padded])  # noqa: B023
        yield f"{task}: time of bucketed batches / padded to 128", ratio, "x", ("<=", target)


def waiting_for_data() -> Iterator[Result]:
    """Share of a training loop on MRPC's lengths that waits for the next batch."""
    model = BertForSequenceClassification(BertConfig(**MINILM)).train()
    loader = iter(make_module("MRPC").train_dataloader())
    step(model, next(loader))
    waited = worked = 0.0
    for _ in range(6):
        began = time.process_time()
        batch = next(loader)
        waited += time.process_time() - began
        worked += seconds(lambda: step(model, batch))  # noqa: B023
    yield "MRPC: waiting for data / time of a step", waited / (waited + worked), "share", ("<=", 0.03)


def million_rows() -> Iterator[Result]:
    """Memory of writing a million augmented rows, and of training on them."""
    with tempfile.TemporaryDirectory() as folder:
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            rows, peak = pool.apply(write_million, (folder,))
        assert rows >= MILLION
        yield f"writing {rows} augmented rows: peak memory", peak / 1024, "GiB", ("<=", 1.5)
        with context.Pool(1) as pool:
            early, late = pool.apply(read_million, (folder,))
        yield "reading them: resident memory at the end / after a tenth", late / early, "x", ("<=", 1.05)


def write_million(folder: str) -> tuple[int, float]:
    """Rows written, and the process's peak memory in MiB."""
    tokenizer, words = make_tokenizer()
    random = np.random.default_rng(0)
    sources = MILLION // 20
    texts = [" ".join(words[i] for i in random.integers(0, 200, length)) for length in random.integers(6, 14, sources)]
    rows = {"text_a": texts, "label": [0] * sources}
    maker = Augmenter(rows, tokenizer, RandomWords(words), AugmentSpec(variants=21), max_length=128)
    written = sum(write_shard(maker, number, Path(folder)).rows for number in range(maker.shards))
    return written, status("VmHWM")  # ru_maxrss would begin with the parent's


class RandomWords:
    """Fifteen candidates for any word, without a model: the memory of writing is what is measured."""

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def find(self, sentences: list[Sentence]) -> list[dict[int, list[str]]]:
        return [{i: self.words[17 * i : 17 * i + 15] for i in sentence.replaceable} for sentence in sentences]


def read_million(folder: str) -> tuple[float, float]:
    """Anonymous resident memory in MiB after a tenth of the batches and at the end (pages of mapped files are the
    system's to drop).
    """
    tokenizer, _ = make_tokenizer()
    loader = LoaderSpec(batch_size=256, total_batches=3000)
    module = RowsDataModule(SomeRows(tokenizer, load_shards(Path(folder))), loader)
    early = 0.0
    for number, _ in enumerate(module.train_dataloader()):
        if number == 300:
            early = status("RssAnon")
    return early, status("RssAnon")


def status(field: str) -> float:
    """A memory figure of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


@dataclass
class SomeRows:
    """Rows that are tokenized already, none to validate on."""

    tokenizer: PreTrainedTokenizerFast
    train: Dataset
    dev: dict[str, Dataset] = field(default_factory=dict)
    dev_names: list[str] = field(default_factory=list)
    fit_dev_names: list[str] = field(default_factory=list)


def make_module(task: str) -> RowsDataModule:
    """Rows in a task's number and lengths."""
    tokenizer, _ = make_tokenizer()
    random = np.random.default_rng(0)
    steps = np.linspace(0, 1, len(TOKENS[task]))
    lengths = np.interp(random.random(ROWS[task]), steps, TOKENS[task]).astype(int)
    ids = [random.integers(5, 1000, length).tolist() for length in lengths]
    columns = {"input_ids": ids, "length": lengths.tolist(), "label": [0] * len(ids), "index": list(range(len(ids)))}
    return RowsDataModule(SomeRows(tokenizer, Dataset.from_dict(columns)), LoaderSpec(BATCH, total_batches=40))


def pad_to(batch: dict[str, torch.Tensor], length: int) -> dict[str, torch.Tensor]:
    missing = length - batch["input_ids"].shape[1]
    wide = ("input_ids", "attention_mask", "token_type_ids")
    return {k: torch.nn.functional.pad(v, (0, missing)) if k in wide else v for k, v in batch.items()}


def step(model: BertForSequenceClassification, batch: dict[str, torch.Tensor]) -> None:
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    model(**inputs).loss.backward()
    model.zero_grad()


def make_tokenizer() -> tuple[PreTrainedTokenizerFast, list[str]]:
    """A WordPiece tokenizer of BERT's size over made-up words, and the words."""
    random = np.random.default_rng(0)
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = sorted({"".join(random.choice(list(letters), random.integers(4, 10))) for _ in range(WORDS)})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *(f"##{a}" for a in letters)]
    backend = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    special = {
        name: f"[{name[:-6].upper()}]" for name in ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    }
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, model_input_names=inputs, model_max_length=512, **special
    ), words


def seconds(work: Callable[[], object]) -> float:
    """Processor time; elapsed time would depend on what else runs on the machine."""
    began = time.process_time()
    work()
    return time.process_time() - began


if __name__ == "__main__":
    sys.exit(main())
