import pytest
import torch
from datasets import Dataset
from torchmetrics.functional.text import squad

from bitkd.data.answer_metric import AnswerMetric, answer_scores, best_spans
from bitkd.data.answer_windows import encode_windows
from bitkd.data.tasks import AnswersSpec


@pytest.mark.parametrize(
    ("text", "golds", "exact", "f1"),
    [
        ("Denver Broncos", ["Denver Broncos"], 1, 1),
        ("the DENVER  broncos!", ["Denver Broncos"], 1, 1),
        ("Denver Broncos team", ["Denver Broncos"], 0, 4 / 5),  # 2 of 3, 2 of 2
        ("an apple", ["a pear"], 0, 0),
        ("well-known", ["well known"], 0, 0),  # punctuation goes without a space
        ("São Paulo", ["sao paulo"], 0, 1 / 2),  # accents stay
        ("“Köln”", ["Köln"], 0, 0),  # only ASCII punctuation goes
        ("no no no", ["no no yes"], 0, 2 / 3),  # each word counts as often as in both
        ("in Bonn", ["Köln", "Bonn", "in Bonn today"], 0, 4 / 5),  # the best of all
        ("", ["Bonn"], 0, 0),
    ],
)
@pytest.mark.parametrize("unanswerable", [False, True])
def test_exact_match_and_f1_of_an_answer(text, golds, exact, f1, unanswerable):
    assert answer_scores(text, golds, unanswerable) == pytest.approx({"exact_match": exact, "answer_f1": f1})
    found = squad({"prediction_text": text, "id": ""}, {"answers": {"text": golds}, "id": ""})
    assert (float(found["exact_match"]), float(found["f1"])) == pytest.approx((100 * exact, 100 * f1))


@pytest.mark.parametrize(
    ("text", "golds", "version_1", "version_2"),
    [
        ("the", ["a"], (1, 0), (1, 1)),  # version 2 leaves out a right answer without words: there is none
        ("cat", ["the", "cat"], (1, 1), (1, 1)),
        ("", ["the", "cat"], (1, 0), (0, 0)),
        ("", [], None, (1, 1)),
        ("?!", [], None, (1, 1)),
        ("cat", [], None, (0, 0)),
    ],
)
def test_answers_without_words_follow_the_version(text, golds, version_1, version_2):
    for version, expected in ((False, version_1), (True, version_2)):
        if expected is not None:
            assert tuple(answer_scores(text, golds, version).values()) == expected


def brute_force(logits, context, longest):
    start, end = context
    spans = [(i, j) for i in range(start, end) for j in range(i, min(end, i + longest))]
    return max(spans, key=lambda span: logits[span[0], 0] + logits[span[1], 1])


@pytest.mark.parametrize("longest", [1, 3, 50])
def test_the_best_span_is_that_of_a_search_over_all(longest):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(40, 16, 2, generator=generator)
    context = torch.stack([torch.randint(1, 6, (40,)), torch.randint(6, 17, (40,))], 1)
    spans, scores = best_spans(logits, context, longest)
    for window, limits, span, score in zip(logits, context.tolist(), spans.tolist(), scores):
        assert tuple(span) == brute_force(window, limits, longest)
        assert score == window[span[0], 0] + window[span[1], 1]


def test_logits_that_are_no_numbers_stay_in_the_context():
    spans, _ = best_spans(torch.full((1, 8, 2), torch.nan), torch.tensor([[3, 6]]), 4)
    assert spans.min() >= 3
    assert spans.max() < 6


CONTEXTS = ["a dog runs . the cat sleeps . a bird sees the big red dog .", "the old cat"]
GOLDS = [["red dog"], []]
V2 = AnswersSpec(unanswerable=True)


@pytest.fixture
def windows(tiny_tokenizer):
    found = Dataset.from_dict(encode_windows(tiny_tokenizer, ["the dog", "a bird"], CONTEXTS, None, 13, 3))
    return found.add_column("index", [10, 11, 12, 13])


def logits_of(windows, peaks, nothing):
    """Logits that are 0 but at `peaks`, {window: (first token, last token, logit)}, and at [CLS]."""
    logits = torch.zeros(len(windows), 16, 2)
    logits[:, 0] = torch.tensor(nothing)[:, None] / 2
    for window, (first, last, logit) in peaks.items():
        logits[window, first, 0] = logits[window, last, 1] = logit / 2
    return logits


def batch_of(windows, numbers):
    context = [[windows[i]["context_from"], windows[i]["context_to"]] for i in numbers]
    return {"index": 10 + torch.tensor(numbers), "context": torch.tensor(context)}


def updated(metric, windows, logits, *parts):
    for numbers in parts:
        metric.update(logits[numbers], batch_of(windows, numbers))
    return metric


def test_the_best_window_answers_and_the_lowest_score_of_no_answer_counts(windows):
    logits = logits_of(windows, {0: (6, 6, 4.0), 2: (6, 7, 6.0), 3: (5, 6, 2.0)}, nothing=[9.0, 5.0, 9.0, 7.0])
    metric = updated(AnswerMetric(windows, CONTEXTS, V2, GOLDS), windows, logits, [0, 1, 2, 3])
    assert metric.answers() == {
        0: ("big red", CONTEXTS[0].index("big red"), 6.0, 1.0),
        1: ("", None, 7.0, -5.0),
    }
    assert metric.compute() == pytest.approx({"exact_match": 0.5, "answer_f1": 0.75})
    scores, answerable = metric.row_scores()
    assert (scores.tolist(), answerable.tolist()) == ([[0.5], [1]], [1, 0])
    careful = AnswerMetric(windows, CONTEXTS, AnswersSpec(True, 5.0), GOLDS, "exact_match")
    assert updated(careful, windows, logits, [0, 1, 2, 3]).answers()[1].text == "old cat"  # 5 is not more than 5
    assert careful.compute() == pytest.approx({"exact_match": 0.0, "answer_f1": 0.25})
    assert careful.row_scores()[0].tolist() == [[0], [0]]
    always = updated(AnswerMetric(windows, CONTEXTS, AnswersSpec()), windows, logits, [0, 1, 2, 3])
    assert [answer.text for answer in always.answers().values()] == ["big red", "old cat"]


def test_any_division_of_the_windows_gives_the_same(windows):
    logits = torch.randn(4, 16, 2, generator=torch.Generator().manual_seed(1)).round()  # with ties
    whole = updated(AnswerMetric(windows, CONTEXTS, V2, GOLDS), windows, logits, [0, 1, 2, 3])
    for one, other in (([3, 0], [2, 1]), ([2], [1, 3, 0])):
        parts = [updated(AnswerMetric(windows, CONTEXTS, V2), windows, logits, part) for part in (one, other)]
        gathered = AnswerMetric(windows, CONTEXTS, V2, GOLDS)
        for name in ("index", "spans", "scores"):
            setattr(gathered, name, [torch.cat([*getattr(parts[0], name), *getattr(parts[1], name)])])
        assert gathered.answers() == whole.answers()


def test_an_update_does_not_wait_for_the_device(windows, no_host_reads):
    metric = AnswerMetric(windows, CONTEXTS, V2, GOLDS)
    logits, batch = torch.zeros(4, 16, 2), batch_of(windows, [0, 1, 2, 3])
    with no_host_reads():
        metric.update(logits, batch)
