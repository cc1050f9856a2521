"""Files are UTF-8 whatever the locale says, as in a container that has none."""

import subprocess
import sys
from pathlib import Path

import pandas as pd

from clip_core.data.pairs import read_pairs
from tests.conftest import ENVIRONMENT, ROOT

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
PAIRS = 'image,caption\n1.png,"白猫，睡着了"\nnone.png,没有\n'
SCRIPT = """
import locale, sys
from pathlib import Path

import clip_core
from clip_core.config.sources import TableSource
from clip_core.data.across import key_facts
from clip_core.data.pairs import write_counts, write_pairs, write_rejected
from clip_core.data.sources import emoji_families, emoji_packages
from clip_core.data.sources.npm_packages import pinned_packages
from clip_core.data.validation_page import write_page
from clip_core.data.verdict import judge_shard
from clip_core.data.verdict_on_all import judge_all
from clip_core.model.weights import save_weights
from clip_core.all_params import load_params
from clip_core.text import build_tokenizer
from tests.harvested import harvested
from tests.tiny import MADE, tiny_clip

assert locale.getpreferredencoding() == "ANSI_X3.4-1968"
folder, params = Path(sys.argv[1]), load_params(Path("params.yaml")).validate_
found = harvested(TableSource(source="table", path=str(folder), table="pairs.csv", columns=None, fetch=None,
                            licence="CC0-1.0", valid_percent=20, test_percent=20))
write_rejected(found.rejected, folder)
write_counts(folder, 2, 1, found.rejected["reason"], **{"图": 1})
pairs = found.pairs.assign(image_sha256="0", width=1, height=1, num_bytes=1)
write_pairs(pairs, folder / "pairs.parquet")
verdict = judge_shard(pairs, found.images, params, folder / "pairs.parquet")
of_all = judge_all([verdict.aggregate], key_facts([folder / "pairs.parquet"]), params)
write_page(of_all, folder, lambda file, image_id: None, 100)
assert emoji_families.rules() and pinned_packages(emoji_packages.TABLE)
tokenizer = build_tokenizer(["白猫，睡着了"])
save_weights(tiny_clip(tokenizer), tokenizer, folder / "weights", MADE)
assert clip_core.load(folder / "weights").encode_texts(["白猫"]).shape == (1, 8)
"""


def test_chinese_pairs_quarantine_pages_and_weights_are_written_and_read_without_a_utf8_locale(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text(PAIRS, encoding="utf-8")
    (tmp_path / "1.png").write_bytes(b"no picture, so that its pair is shown among the rejected")
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    command = (sys.executable, str(tmp_path / "script.py"), str(tmp_path))
    environment = ENVIRONMENT | ASCII | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr
    assert read_pairs(tmp_path / "pairs.parquet")["caption"].tolist() == ["白猫，睡着了"]
    assert pd.read_parquet(tmp_path / "rejected.parquet")["caption"].tolist() == ["没有"]
    assert "白猫，睡着了" in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert '"图"' in (tmp_path / "counts.json").read_text(encoding="utf-8")
    assert "睡" in (tmp_path / "weights" / "tokenizer.json").read_text(encoding="utf-8")
