"""The real sizes of compared students."""

from dataclasses import replace

import pytest

from bitkd.compare.arms import make_arms
from bitkd.compare.comparison import Comparison
from bitkd.compare.pairing import pairs
from bitkd.compare.sizes import are_equal, file_sizes, size_notes, size_ratio, word_embeddings
from bitkd.quant.spec import QuantSpec
from tests.compare.synthetic import make_one, with_measurement


def sized(pipeline, mib, encoder_bits=96):
    run = make_one(pipeline, 1)
    return replace(run, stages=[*run.stages[:-1], replace(run.final, packed_mib=mib, encoder_bits=encoder_bits)])


def notes(*runs):
    return size_notes(pairs(make_arms(list(runs))))


def test_sizes_are_measured_ones_if_both_were_measured():
    multi, single = (sized(name, mib) for name, mib in (("multistage", 3.0), ("singlestage", 2.0)))
    assert file_sizes(*make_arms([multi, single])) == (3.0, 2.0, "packed")
    assert file_sizes(*make_arms([with_measurement(multi, 9.0), single])) == (3.0, 2.0, "packed")
    measured = make_arms([with_measurement(multi, 9.0), with_measurement(single, 6.0)])
    assert file_sizes(*measured) == (9.0, 6.0, "exported")
    comparison = Comparison.of([with_measurement(multi, 9.0), with_measurement(single, 6.0)])
    assert [row["size_ratio"] for row in comparison.as_data()["differences"]] == [1.5]


@pytest.mark.parametrize(("ratio", "equal"), [(0.95, True), (1 / 0.95, True), (0.949, False), (1 / 0.949, False)])
def test_sizes_are_equal_to_within_a_twentieth_of_the_larger_one(ratio, equal):
    assert are_equal(ratio) == equal


def test_unequal_sizes_are_named_and_so_are_the_comparisons_at_equal_ones():
    single, progressive, multi = sized("singlestage", 100.0), sized("progressive", 104.0), sized("multistage", 144.0)
    assert notes(single, progressive) == []
    assert notes(single, progressive, multi) == [
        "multistage is 1.44 times as large as singlestage (144 and 100 MiB packed), though their encoder bits are equal.",
        "At equal real sizes, to within 5 %: progressive − singlestage.",
    ]
    assert notes(single, sized("multistage", 144.0, encoder_bits=95)) == [
        "multistage is 1.44 times as large as singlestage (144 and 100 MiB packed).",
        "No two are of equal real size, to within 5 %.",
    ]


def of_shape(run, layers=6, hidden=384, words=30522):
    """The run with the sizes that students of these shapes have; its final student is binary."""
    matrices, table, width = layers * 12 * hidden**2, words * hidden, run.settings.get("student.width", 1.0)
    halves = int(matrices * width)

    def stage(found):
        split = found.word_tables > 1
        return replace(found, parameters=(halves + table) * (1 + split), encoder_bits=halves * (1 + split))

    stages = [stage(replace(s, precision="W1A8") if s.kind == "single_stage" else s) for s in run.stages]
    packed = stages[-1].parameters / 8 / 2**20
    return replace(run, stages=[*stages[:-1], replace(stages[-1], packed_mib=packed)])


def test_word_embeddings_that_make_sizes_equal_are_named_if_a_split_tells_how_many_weights_they_have():
    half = {"student.width": 0.5, "content of model": "a"}
    multi = of_shape(replace(make_one("multistage", 1), settings=half))
    stages = {stage.name: stage for stage in multi.stages}
    whole = {"student.width": 1.0, "content of model": "a"}
    single = of_shape(replace(make_one("singlestage", 1), settings=whole))
    assert stages["ternary"].encoder_bits < stages["split"].encoder_bits
    assert word_embeddings(single, [multi]) == 30522 * 384
    assert word_embeddings(replace(single, settings={"content of model": "b"}), [multi]) is None
    assert word_embeddings(single, [single]) is None
    found = notes(multi, single)
    assert found[-1].startswith("For an equal size, run singlestage again with embedding_bits=2: about 4.06 MiB")
    assert size_ratio(*make_arms([multi, single])) > 1.4
    kept = replace(single, settings=single.settings | {"stages.single_binary.quant.embedding_bits": 32})
    assert not any("For an equal size" in text for text in notes(multi, kept))


def test_the_size_with_other_word_embeddings_is_that_of_such_a_student(tiny_bert):
    """As `_remedy` counts it: a weight takes the bits of its width, or 16 in place of 32."""
    from transformers import AutoModelForSequenceClassification

    from bitkd import prepare
    from bitkd.models.size import measure

    def file_mib(bits):
        model = AutoModelForSequenceClassification.from_pretrained(tiny_bert)
        return measure(prepare(model, QuantSpec(1, bits, 8))).file_mib, model.get_input_embeddings().weight

    (binary, weight), (ternary, _) = file_mib(1), file_mib(2)
    assert ternary - binary == pytest.approx(weight.numel() / 8 / 2**20, rel=0.01)
