"""Typed configuration."""

from bitkd.config.load import load_config

__all__ = ["load_config"]
