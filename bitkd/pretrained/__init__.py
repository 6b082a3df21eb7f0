"""Checkpoints of transformers: checks of their files, and loading without random weights."""
