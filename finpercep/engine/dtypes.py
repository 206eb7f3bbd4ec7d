"""Types by name: the short ones of options, and torch's own."""

from __future__ import annotations

from finpercep.engine.executor import DTYPES

__all__ = ["NAMED_DTYPES"]

NAMED_DTYPES = DTYPES | {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
"""What a name may be; messages and help texts give the short ones alone."""
