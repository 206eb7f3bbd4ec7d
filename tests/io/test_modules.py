import math
import re

import pytest

from finpercep.io.modules import imported


def test_it_gives_what_is_named():
    assert imported("math", "sqrt") is math.sqrt


def test_what_is_not_there_is_named():
    with pytest.raises(ImportError, match=r"^no_such_module:f: expected a module that can be imported, got: No module"):
        imported("no_such_module", "f")
    for module in ("", ".math"):
        message = f"^{re.escape(module)}:sqrt: expected the full name of a module before the colon, got '"
        with pytest.raises(ValueError, match=message):
            imported(module, "sqrt")
    with pytest.raises(ValueError, match=r"^math:sqr: the module math has no 'sqr'; did you mean sqrt\?$"):
        imported("math", "sqr")
