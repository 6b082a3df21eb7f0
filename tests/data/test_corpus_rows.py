import pytest

from bitkd.data.corpus_rows import CorpusRows
from bitkd.data.documents import FileDocuments, read_documents
from bitkd.errors import InputError


def corpus(tokenizer, folder, **settings):
    return CorpusRows(FileDocuments([str(folder / "corpus.txt")]), tokenizer, **({"max_length": 32} | settings))


def test_documents_are_packed_as_pairs_with_token_types(tiny_tokenizer, tiny_task):
    rows = corpus(tiny_tokenizer, tiny_task)
    sep, cls = tiny_tokenizer.sep_token_id, tiny_tokenizer.cls_token_id
    lengths = []
    for row in rows.train:
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
    rows = corpus(tiny_tokenizer, tiny_task, segments=1)
    packed = [i for part in (rows.train, rows.dev["dev"]) for row in part for i in row["input_ids"][1:-1]]
    documents = list(read_documents(tiny_task / "corpus.txt"))
    plain = [i for ids in tiny_tokenizer(documents, add_special_tokens=False)["input_ids"] for i in ids]
    assert packed == plain


def test_packing_is_the_same_twice_and_has_a_seed(tiny_tokenizer, tiny_task):
    first, second, other = (corpus(tiny_tokenizer, tiny_task, pack_seed=seed) for seed in (0, 0, 9))
    assert first.train["input_ids"][:] == second.train["input_ids"][:] != other.train["input_ids"][:]
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
def test_documents_are_separated(content, documents, tmp_path):
    (tmp_path / "x.txt").write_text(content)
    assert list(read_documents(tmp_path / "x.txt")) == documents


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: [str(folder / "nowhere.txt")], "there is no such file"),
        (lambda folder: [str(folder)], r"the folder has no \.txt file"),
    ],
)
def test_a_corpus_that_is_not_there_is_named(make, message, tmp_path):
    with pytest.raises(InputError, match=message):
        FileDocuments(make(tmp_path))


def test_an_empty_corpus_is_refused(tiny_tokenizer, tmp_path):
    (tmp_path / "x.txt").write_text("\n\n")
    with pytest.raises(InputError, match="holds 0 documents"):
        _ = CorpusRows(FileDocuments([str(tmp_path)]), tiny_tokenizer).train


def test_a_byte_of_a_corpus_that_is_not_utf8_is_named_by_line(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfone\ntwo \xff\n")
    with pytest.raises(InputError, match=r"x\.txt:2: a byte is not UTF-8 \(0xff\)"):
        list(read_documents(tmp_path / "x.txt"))
