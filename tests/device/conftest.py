"""What runs of tests/api start from."""

from __future__ import annotations

from tests.api.conftest import given, no_export  # noqa: F401
