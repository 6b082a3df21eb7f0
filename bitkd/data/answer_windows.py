"""Questions and their contexts as windows of tokens: a long context is read in parts that overlap."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from bitkd.data.answer_files import Gold
from bitkd.data.tasks import TaskSpec
from bitkd.errors import InputError

LONGEST_QUESTION = 64
"""Tokens of a question at most, as in BERT's own code for SQuAD (`max_query_length`)."""

NO_ANSWER = [0, 0]
"""The label of a window without the answer: its first token, [CLS]."""


def check_tokenizer(tokenizer: Any) -> None:
    """Raise InputError if a tokenizer cannot say which characters a token is, or does not put [CLS] first."""
    if not tokenizer.is_fast:
        raise InputError(
            f"question answering needs a fast tokenizer, which knows the characters of each token; {type(tokenizer).__name__} "
            "is none: save its fast form (tokenizer.json) into the model's folder"
        )
    if tokenizer.padding_side == "left":
        raise InputError(
            "question answering needs a tokenizer that pads on the right, because the first token stands for no answer; this "
            "one pads on the left: set padding_side to right in its tokenizer_config.json"
        )
    if tokenizer.truncation_side == "left":
        raise InputError(
            "question answering needs a tokenizer that truncates on the right, because windows are read from the first one on; "
            "this one truncates on the left: set truncation_side to right in its tokenizer_config.json"
        )
    first = tokenizer("a", "a")["input_ids"][0]
    if tokenizer.cls_token_id is None or first != tokenizer.cls_token_id:
        raise InputError(
            f"question answering needs a tokenizer that puts [CLS] first, because it stands for no answer; this one begins with "
            f"{tokenizer.convert_ids_to_tokens(first)}: use another model"
        )


def overlap_of(task: TaskSpec, max_length: int) -> int:
    """Tokens of the context that neighbouring windows share."""
    return max_length // 3 if task.windows.overlap is None else task.windows.overlap


def question_limit(tokenizer: Any, max_length: int, overlap: int) -> int:
    """Tokens of a question at most: LONGEST_QUESTION, and no more than leave each window as many new tokens of the context.

    Raises InputError if a window has no place for new tokens.
    """
    special = tokenizer.num_special_tokens_to_add(pair=True)
    limit = min(LONGEST_QUESTION, (max_length - special - overlap) // 2)
    if limit < 1:
        raise InputError(
            f"data.max_length={max_length} leaves no place for a question and a context beside {special} special tokens and "
            f"task.windows.overlap={overlap}; use a larger max_length or a smaller overlap"
        )
    return limit


def encode_windows(
    tokenizer: Any,
    questions: Sequence[str],
    contexts: Sequence[str],
    answers: Sequence[Sequence[Gold]] | None,
    max_length: int,
    overlap: int,
) -> dict[str, list[Any]]:
    """The windows of rows, in their order, as columns with an entry for each window. A row has none if the tokenizer makes no
    tokens of its context.

    answers: of each row; the first is the label. None leaves out the column `label`.
    max_length: tokens of a window at most.  overlap: tokens of the context that neighbouring windows share.

    Columns: those of the tokenizer; `length` (tokens); `truncated` (in a row's first window: whether its question is cut,
    see `question_limit`, or no window has its answer wholly); `row` (number in `questions`); `context_from` and
    `context_to` (its first token of the context, and the one after its last); `offsets` (first character and the one after
    the last of each of these tokens, as one flat list); `label` (first and last token of the answer, or NO_ANSWER if the
    window does not have it wholly).
    """
    limit = question_limit(tokenizer, max_length, overlap)
    shorter = _cut_questions(tokenizer, questions, limit)
    encoded = tokenizer(
        shorter,
        list(contexts),
        truncation="only_second",
        max_length=max_length,
        stride=overlap,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    segments = [encoding.sequence_ids for encoding in encoded.encodings]
    kept = [window for window, segment in enumerate(segments) if 1 in segment]
    segments = [segments[window] for window in kept]
    columns: dict[str, list[Any]] = {name: [encoded[name][window] for window in kept] for name in encoded}
    rows = columns.pop("overflow_to_sample_mapping")
    offsets = columns.pop("offset_mapping")
    columns["length"] = [len(ids) for ids in columns["input_ids"]]
    columns["row"] = rows
    columns["context_from"] = [segment.index(1) for segment in segments]
    columns["context_to"] = [len(segment) - segment[::-1].index(1) for segment in segments]
    spans = [pairs[start:end] for pairs, start, end in zip(offsets, columns["context_from"], columns["context_to"])]
    columns["offsets"] = [[place for pair in span for place in pair] for span in spans]
    is_first = [i == 0 or rows[i - 1] != row for i, row in enumerate(rows)]
    is_last = [*is_first[1:], True]
    damaged = {row for row, pair in enumerate(zip(shorter, questions)) if pair[0] != pair[1]}
    if answers is not None:
        columns["label"] = [
            _label(answers[row], np.asarray(flat).reshape(-1, 2), start, *ends)
            for row, flat, start, *ends in zip(rows, columns["offsets"], columns["context_from"], is_first, is_last)
        ]
        found = {row for row, label in zip(rows, columns["label"]) if label != NO_ANSWER}
        damaged |= {row for row, golds in enumerate(answers) if golds} - found
    columns["truncated"] = [first and row in damaged for first, row in zip(is_first, rows)]
    return columns


def _cut_questions(tokenizer: Any, questions: Sequence[str], limit: int) -> list[str]:
    """The questions; those of more than `limit` tokens without their last ones."""
    tokens = tokenizer(list(questions), add_special_tokens=False, verbose=False)["input_ids"]
    return [text if len(ids) <= limit else _cut(tokenizer, text, limit) for text, ids in zip(questions, tokens)]


def _cut(tokenizer: Any, text: str, limit: int) -> str:
    while True:  # a part of a word may be more tokens than it was in the word
        found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)["offset_mapping"]
        if len(found) <= limit:
            return text
        text = text[: found[limit][0]]


def _label(answers: Sequence[Gold], spans: np.ndarray, start: int, is_first: bool, is_last: bool) -> list[int]:
    """The first and the last token of the first answer; NO_ANSWER if the window does not have all its tokens.

    spans: (tokens, 2), characters of each token of the context.  start: position of the first of them in the window.
    is_first, is_last: whether the window is its row's first or last one, before and after which there is no token.
    """
    if not answers:
        return NO_ANSWER
    begin, text = answers[0]["start"], answers[0]["text"]
    begin, end = begin + len(text) - len(text.lstrip()), begin + len(text.rstrip())
    # An answer may begin or end within a token.
    tokens = np.flatnonzero((spans[:, 1] > begin) & (spans[:, 0] < end))
    is_whole = tokens.size and (is_first or spans[0, 0] <= begin) and (is_last or spans[-1, 1] >= end)
    return [start + int(tokens[0]), start + int(tokens[-1])] if is_whole else NO_ANSWER
