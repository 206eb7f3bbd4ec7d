"""Types by name: the short ones of options, and torch's own."""

from __future__ import annotations

import torch

__all__ = ["DTYPES", "NAMED_DTYPES"]

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The short names, which messages and help texts give."""
NAMED_DTYPES = DTYPES | {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES.values()}
"""What a name may be."""
