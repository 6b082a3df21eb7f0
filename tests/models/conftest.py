"""What the tests of models share."""

import torch
from transformers import AutoModelForSequenceClassification, BertConfig

from bitkd.models.attention import ATTENTION
from bitkd.models.encoder import encoder_layers
from bitkd.models.importance import Importance

SHAPE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "num_labels": 3,
}


def classifier(config=None, seed=0):
    torch.manual_seed(seed)
    config = config or BertConfig(**SHAPE)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=ATTENTION)
    with torch.no_grad():  # the stock initialization is so small that heads hardly differ
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def batch(rows=3, length=9, padding=2):
    torch.manual_seed(1)
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[1:, length - padding :] = 0
    return {"input_ids": torch.randint(5, 60, (rows, length)), "attention_mask": mask}


def importance_of(model, seed=2):
    generator = torch.Generator().manual_seed(seed)
    layers = len(encoder_layers(model))
    return Importance(torch.rand(layers, 4, generator=generator), torch.rand(layers, 64, generator=generator))
