"""DVC stage: both towers as ONNX, if the gates let the model pass and torch and onnxruntime agree."""

import json
import sys
from pathlib import Path

from clip_core.config.export import Export
from clip_core.config.gates import Gates
from clip_core.config.section import Section
from stages.command import run


class Params(Section):
    gates: Gates
    export: Export


def main(params: Params, model: Path, metrics: Path, calibration: Path, packed: Path, out: Path) -> None:
    from clip_core.evaluate.gates import check_gates

    check_gates(json.loads(metrics.read_text(encoding="utf-8")), params.gates)  # before torch is loaded

    from clip_core.data.store import open_store
    from clip_core.serve.export import export

    store = open_store(packed / "test")
    texts = sorted(set(store.pairs.query("language == 'zh'").caption))
    parity = export(model, store, texts, params.export, out, calibration)
    assert "onnxruntime" not in sys.modules, "torch's features must come from a process without onnxruntime"
    print(json.dumps(parity, indent=1))


if __name__ == "__main__":
    run(main)
