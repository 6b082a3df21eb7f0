"""Marks in a student's config.json that `from_pretrained` of transformers reads. No torch."""

METHOD = "bitkd"
"""The quantization method of students that only bitkd can load."""

GUARD = "import_bitkd_before_from_pretrained.safetensors"
"""A file that does not exist. Where bitkd is not imported, transformers looks for it and refuses with its name, instead of
loading the weights as those of a plain model; this is what its setting `transformers_weights` does."""
