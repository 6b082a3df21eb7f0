"""The kinds of nodes. `bitkd.pipeline.build` knows the module of each."""

DISTILLATION: dict[str, tuple[str, ...]] = {
    "general": ("hidden", "attention"),
    "intermediate": ("hidden", "attention"),
    "prediction": ("logits",),
    "single_stage": ("logits", "hidden", "attention"),
}
"""The loss terms of each kind that distils."""

TRAINED = ("finetune", *DISTILLATION)
AUGMENT = "augment"
KINDS = (*TRAINED, "init", "split", AUGMENT)
