"""Try an installed earlybert: run by the interpreter of an environment that holds the built wheel and nothing else.

.venv-dist/bin/python -I supply/try_install.py
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import earlybert as eb


def main() -> None:
    """The command, the package data, and the three verbs on a tiny model of random weights."""
    assert "torch" not in sys.modules, "import earlybert loads torch"
    root = Path(str(files("earlybert")))
    assert root.is_relative_to(sysconfig.get_paths()["purelib"]), f"this is {root}, not the installed package"
    assert version("earlybert") == eb.__version__
    for name in ("py.typed", "report/templates/report.html.jinja", "report/templates/report.css"):
        assert (root / name).is_file(), f"{name} is not in the wheel"
    command = Path(sysconfig.get_path("scripts")) / "earlybert"
    shown = subprocess.run([command, "--help"], check=True, capture_output=True, text=True).stdout
    assert "finetune" in shown

    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model("bert", vocab_size=99, **sizes))
    batch = {"input_ids": torch.randint(5, 99, (8, 12)), "labels": torch.randint(0, 2, (8,))}
    scores = eb.search(model, [batch], steps=3)
    small = eb.apply(model, eb.draw(scores, heads=2, neurons=0.5, align=8)).eval()
    with tempfile.TemporaryDirectory() as folder:
        eb.save(small, folder)
        loaded = eb.load(folder)
    assert torch.equal(loaded(**batch).logits, small(**batch).logits)
    print(f"earlybert {eb.__version__}: {model.num_parameters():,} -> {loaded.num_parameters():,} parameters")


if __name__ == "__main__":
    main()
