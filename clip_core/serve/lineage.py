"""Where a release comes from, and which releases hold a picture, a caption or a source: `serving/lineage/`.

    <release>.json        commit, each stage's params and the hashes of what it read and made, sources with licences,
                          what it measured on the test, how it was proved
    data/<hash>.parquet   the keys of every training pair of the data that `model.json` names by this hash

Both are written when a release is added and stay when it is removed: what a model has seen is known also when its data
are gone.
"""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from clip_core.code import commit_of
from clip_core.config.section import hash_of
from clip_core.data.tombstones import Tombstones, is_hit
from clip_core.errors import UserError
from clip_core.files import atomic_write, replacing_file
from clip_core.model.contract import read_contract
from clip_core.params_file import read_yaml
from clip_core.serve.release import read_manifest
from clip_core.serve.releases import num_shown

if TYPE_CHECKING:
    import pandas as pd

FOLDER = "lineage"
PACKED = Path("data/packed/train")  # in a project, as dvc.yaml packs
METRICS, PROOF = "reports/test/metrics.json", "reports/deploy.json"  # the same
KEYS = ["image_id", "image_sha256", "caption_sha256", "source"]


class Holding(NamedTuple):
    """What a release has of something that was looked for."""

    release: str
    num_trained: int | None  # pairs of its training data; None: nobody knows, its data were never seen here
    num_found: int  # pictures of its galleries


def keep(serving: Path, release: Path, project: Path) -> None:
    """Writes down where the release in the folder comes from, as `project` (with its dvc.lock) tells now.

    Only the first time: when the same release is added again, the project may have gone on.
    """
    manifest = read_manifest(release)
    if _file(serving, manifest.release).exists():
        return
    made = read_contract(release / "models" / "text_preprocess" / "1").made
    stages = {name: _facts_of(stage) for name, stage in read_yaml(project / "dvc.lock")["stages"].items()}
    facts: dict = {
        "release": manifest.release,
        "weights": manifest.weights,
        "made": made.model_dump(mode="json"),
        "commit": commit_of(project),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "stages": stages,
        "metrics": _report(project, METRICS, stages["deploy"]["deps"]),
        "proof": _report(project, PROOF, stages["deploy"]["outs"]),
        "licences": _keep_data(serving, made.data, project / PACKED),
    }
    atomic_write(_file(serving, manifest.release), json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def follow(serving: Path, before: str, release: str) -> None:
    """Writes down that `release` is the one `before` with other pictures, where anything is known of that one."""
    if before in known(serving) and release not in known(serving):
        now = datetime.now(UTC).isoformat(timespec="seconds")
        facts = of(serving, before) | {"release": release, "date": now, "changed_from": before}
        atomic_write(_file(serving, release), json.dumps(facts, indent=1, ensure_ascii=False) + "\n")


def of(serving: Path, release: str) -> dict:
    """What `keep` has written; UserError where that is nothing."""
    file = _file(serving, release)
    if not file.exists():
        there = ", ".join(sorted(known(serving))) or "none"
        raise UserError(f"{file}: nothing is known of release {release}; of these something is: {there}")
    older = {"metrics": None, "proof": None}  # files of before these were kept
    return older | json.loads(file.read_text(encoding="utf-8"))


def holding(serving: Path, wanted: Tombstones, folders: dict[str, Path]) -> Iterator[Holding]:
    """What each release has of a picture, a caption or a source; `folders` are of those still there."""
    for release in sorted(known(serving) | folders.keys()):
        trained = keys_of_data(serving, release)
        num_trained = None if trained is None else int(is_hit(trained, wanted).sum())
        yield Holding(release, num_trained, num_shown(folders[release], wanted) if release in folders else 0)


def known(serving: Path) -> set[str]:
    """The releases of which something was written down."""
    return {file.stem for file in (serving / FOLDER).glob("*.json")}


def keys_of_data(serving: Path, release: str) -> "pd.DataFrame | None":
    """The keys of the pairs that a release was trained on (columns: KEYS); None where nobody knows."""
    import pandas as pd

    if release not in known(serving):
        return None
    data = _data_file(serving, of(serving, release)["made"]["data"])
    return pd.read_parquet(data) if data.exists() else None


def _keep_data(serving: Path, data: str, packed: Path) -> dict[str, dict[str, int]] | None:
    """Source -> licence -> pairs of the training data; None where `packed` holds others, of which nothing is kept."""
    from clip_core.data.store import open_store

    if not packed.exists() or hash_of((store := open_store(packed)).manifest) != data:
        return None
    file = _data_file(serving, data)
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing_file(file) as aside:
            _keys(store.pairs).to_parquet(aside, index=False)
    pairs = store.pairs.fillna({"licence": "unknown"})
    return {
        source: pairs.licence[pairs.source == source].value_counts().to_dict() for source in sorted(set(pairs.source))
    }


def _report(project: Path, name: str, digests: dict[str, str]) -> dict | None:
    """The report that dvc.lock names; None where the file is gone or another one by now."""
    file = project / name
    if not file.exists() or hashlib.md5(data := file.read_bytes()).hexdigest() != digests.get(name):
        return None
    return json.loads(data)


def _keys(pairs: "pd.DataFrame") -> "pd.DataFrame":
    captions = [hashlib.sha256(caption.encode()).hexdigest() for caption in pairs.caption.fillna("")]
    return pairs.assign(caption_sha256=captions)[KEYS]


def _facts_of(stage: dict) -> dict[str, dict]:
    """The hashes of what a stage of dvc.lock read and made, and the params that it ran with."""
    hashes = {kind: {one["path"]: one.get("md5", "") for one in stage.get(kind, [])} for kind in ("deps", "outs")}
    return {**hashes, "params": stage.get("params", {})}


def _file(serving: Path, release: str) -> Path:
    return serving / FOLDER / f"{release}.json"


def _data_file(serving: Path, data: str) -> Path:
    return serving / FOLDER / "data" / f"{data}.parquet"
