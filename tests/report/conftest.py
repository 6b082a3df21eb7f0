"""Fixtures of the report's tests."""

from tests.compare.synthetic import measured, run_of, runs_of  # noqa: F401
