"""lm-eval is imported late, and what is missing is said with its mend."""

import subprocess
import sys

import pytest

from mergekern.errors import MergeError
from mergekern.evaluate.imports import import_lm_eval


def test_errors_name_the_mend(monkeypatch):
    for module in [name for name in sys.modules if name.split(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(MergeError, match=r"lm_eval missing; .*pip install 'mergekern\[eval\]'"):
        import_lm_eval()


def test_training_imports_no_harness():
    code = (
        "import sys, mergekern.lab.train; assert not {'lm_eval', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
