"""The demo's tiny BERT and its tokenizer, trained on this machine."""

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from transformers import BertConfig, BertForPreTraining, BertModel, PreTrainedTokenizerFast, get_scheduler

from bitkd.data.demo.text import rivals
from bitkd.files import follow_umask
from bitkd.store.artifacts import WEIGHTS_FILE

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PRETRAINING_STEPS, PRETRAINING_BATCH, PRETRAINING_LR = 400, 32, 2e-3
MASKED_SHARE, REPLACED_SHARE = 0.25, 0.15
EMBEDDING_STD = 0.1


def write_model(folder: Path, corpus: Path, texts: list[list[str]]) -> None:
    """Train tokenizer and model; the same bytes each time.

    corpus: text file.  texts: its sentences, by document.
    """
    tokenizer = _train_tokenizer(corpus)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one thread adds in one order: the same bytes in every build
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            model = _pretrain(tokenizer, texts)
    finally:
        torch.set_num_threads(threads)
    model.save_pretrained(folder)
    follow_umask(folder / WEIGHTS_FILE)
    tokenizer.save_pretrained(folder)


def _train_tokenizer(corpus: Path) -> PreTrainedTokenizerFast:
    backend = _backend({})
    backend.train([str(corpus)], trainers.WordPieceTrainer(vocab_size=400, special_tokens=SPECIAL, show_progress=False))
    # Training breaks ties differently from run to run, but ends with the same words and letters.
    used = set(backend.encode(corpus.read_text(encoding="utf-8"), add_special_tokens=False).tokens)
    letters = {piece for piece in backend.get_vocab() if len(piece.removeprefix("##")) == 1}
    pieces = [*SPECIAL, *sorted(used | letters)]
    backend = _backend({piece: i for i, piece in enumerate(pieces)})
    sep, cls = ((token, pieces.index(token)) for token in ("[SEP]", "[CLS]"))
    backend.post_processor = processors.BertProcessing(sep, cls)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIAL))
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=inputs, model_max_length=48, **names)


def _backend(vocabulary: dict[str, int]) -> Tokenizer:
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend


def _pretrain(tokenizer: PreTrainedTokenizerFast, texts: list[list[str]]) -> BertModel:
    """Pre-train on two tasks about the second sentence of pairs from one document, so that the model learns to compare
    segments: predict masked words (BERT), and find words that were replaced by a rival (ELECTRA, arXiv:2003.10555).
    """
    model = _start(len(tokenizer), tokenizer.pad_token_id).train()
    finder = nn.Linear(model.config.hidden_size, 1)
    optimizer = torch.optim.AdamW([*model.parameters(), *finder.parameters()], lr=PRETRAINING_LR, betas=(0.9, 0.98))
    schedule = get_scheduler("linear", optimizer, PRETRAINING_STEPS // 10, PRETRAINING_STEPS)
    first, second = zip(*(pair for text in texts for pair in itertools.permutations(text, 2)))
    rows = tokenizer(list(first), list(second), padding=True, return_tensors="pt")
    rival = _rival_table(tokenizer)
    replaceable = rival.sum(1) > 0
    for _ in range(PRETRAINING_STEPS):
        chosen = torch.randint(len(first), (PRETRAINING_BATCH,))
        batch: dict[str, Tensor] = {name: rows[name][chosen] for name in rows}
        ids = batch["input_ids"]
        second_sentence = (batch["token_type_ids"] == 1) & (ids >= len(SPECIAL))
        draw = torch.rand(ids.shape)
        masked = second_sentence & (draw < MASKED_SHARE)
        candidates = second_sentence & ~masked & replaceable[ids]
        replaced = candidates & (draw > 1 - REPLACED_SHARE)
        corrupted = torch.where(masked, tokenizer.mask_token_id, ids)
        corrupted[replaced] = torch.multinomial(rival[ids[replaced]], 1).squeeze(1)
        hidden = model.bert(**{**batch, "input_ids": corrupted}).last_hidden_state
        guess = F.cross_entropy(model.cls.predictions(hidden[masked]), ids[masked])
        found = finder(hidden[candidates]).squeeze(1)
        loss = guess + F.binary_cross_entropy_with_logits(found, replaced[candidates].float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model.bert.eval()


def _start(vocabulary: int, padding: int) -> BertForPreTraining:
    """A tiny BERT before training. It learns to compare segments in a few hundred steps only from a good initialization:
    queries equal keys, so that a word attends to its equals, and residual branches are small, as in a shallow network.
    """
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        max_position_embeddings=48,
        pad_token_id=padding,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForPreTraining(config)
    weights = {name.removesuffix(".weight"): weight for name, weight in model.bert.named_parameters()}
    nn.init.normal_(weights["embeddings.word_embeddings"], 0, EMBEDDING_STD)
    nn.init.normal_(weights["embeddings.position_embeddings"], 0, 0.2 * EMBEDDING_STD)
    nn.init.normal_(weights["embeddings.token_type_embeddings"], 0, 0.3 * EMBEDDING_STD)
    for i in range(config.num_hidden_layers):
        layer = f"encoder.layer.{i}"
        nn.init.orthogonal_(weights[f"{layer}.attention.self.query"])
        weights[f"{layer}.attention.self.key"].data.copy_(weights[f"{layer}.attention.self.query"].data)
        nn.init.orthogonal_(weights[f"{layer}.attention.self.value"])
        nn.init.orthogonal_(weights[f"{layer}.attention.output.dense"], 0.2)
        nn.init.xavier_uniform_(weights[f"{layer}.intermediate.dense"])
        nn.init.xavier_uniform_(weights[f"{layer}.output.dense"], 0.2)
    return model


def _rival_table(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """(vocabulary, vocabulary): 1 if the second word excludes the first."""
    table = torch.zeros(len(tokenizer), len(tokenizer))
    for word, index in tokenizer.get_vocab().items():
        for other in rivals(word):
            table[index, tokenizer.convert_tokens_to_ids(other)] = 1.0
    return table
