"""Search by a Milvus server (`index.kind: milvus`), for galleries whose graph no machine's memory holds.

The server is the one at $CLIP_MILVUS, as http://127.0.0.1:19530; a release, which never changes, does not say where. It
names the collection, by what that holds: the pictures' places, their features and what they may be filtered by. Where
the server has none of that name, it is filled from the release's own files. What Milvus finds is scored exactly.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from clip_core.errors import UserError
from clip_core.files import sha256_file
from clip_core.serve.approximate import AGAIN, BREADTH, LINKS, best_of

FILE = "milvus.json"  # beside the features
ADDRESS, TOKEN = "CLIP_MILVUS", "CLIP_MILVUS_TOKEN"
ROWS_AT_ONCE = 1000  # in one request, which gRPC limits
MAX_WANTED = 16_384  # of one search: Milvus's own limit
SECONDS = 10.0


def build(features: Path, metadata: Mapping[str, list], file: Path) -> None:
    """Names the collection of the features in a file and their metadata; who opens it first fills it."""
    content = sha256_file(features) + json.dumps(metadata, ensure_ascii=False)
    name = f"clip_{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    file.write_text(json.dumps({"collection": name}) + "\n", encoding="utf-8")


def collection_in(file: Path) -> str:
    """The name of the collection."""
    return json.loads(file.read_text(encoding="utf-8"))["collection"]


def collections_of(releases: Iterable[Path]) -> set[str]:
    """The names of the collections that releases in these folders search."""
    return {collection_in(file) for folder in releases for file in folder.glob(f"models/*/1/galleries/*/{FILE}")}


def drop(collections: Collection[str]) -> None:
    """Removes the collections from the server; where it does not answer, they stay, which is said."""
    if not collections:
        return
    try:
        client = _connected()
    except UserError as error:
        print(f"{', '.join(collections)}: still in Milvus: {error}", flush=True)
        return
    for name in collections:
        client.drop_collection(name)


class Milvus:
    """A collection of these features."""

    def __init__(self, file: Path, features: np.ndarray, metadata: Mapping[str, list]) -> None:
        self.features, self.columns = features, list(metadata)
        self.collection = collection_in(file)
        self.client = _connected()
        if not self.client.has_collection(self.collection):
            self._fill(metadata)

    def top_k(
        self, queries: np.ndarray, k: int, wanted: Mapping[str, object] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Places and exact scores of the `k` pictures found for each query, both (queries, k), best first.

        `wanted` are values that the metadata of a picture must have. The place is -1 where no more are found.
        """
        k = min(k, len(self.features))
        limit = min(max(AGAIN * k, BREADTH), len(self.features), MAX_WANTED)
        answers = self.client.search(
            self.collection,
            data=np.asarray(queries, dtype=np.float32).tolist(),
            anns_field="features",
            limit=limit,
            filter=" and ".join(
                f'{_field(self.columns.index(column))} == "{_hash(value)}"' for column, value in (wanted or {}).items()
            ),
            search_params={"metric_type": "IP", "params": {"ef": limit}},
            timeout=SECONDS,
        )
        rows = np.full((len(queries), max(k, limit)), -1, dtype=np.int64)
        for row, hits in zip(rows, answers, strict=True):
            row[: len(hits)] = [hit["place"] for hit in hits]
        return best_of(self.features, rows, queries, k)

    def _fill(self, metadata: Mapping[str, list]) -> None:
        """Under another name at first, so that nobody finds half of it."""
        from pymilvus import DataType, MilvusClient

        schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("place", DataType.INT64, is_primary=True)
        schema.add_field("features", DataType.FLOAT_VECTOR, dim=self.features.shape[1])
        for number in range(len(metadata)):
            schema.add_field(_field(number), DataType.VARCHAR, max_length=64)
        graph = MilvusClient.prepare_index_params()
        build = {"M": LINKS, "efConstruction": BREADTH}
        graph.add_index("features", index_type="HNSW", metric_type="IP", params=build)
        aside = f"{self.collection}_{secrets.token_hex(4)}"
        self.client.create_collection(aside, schema=schema, index_params=graph, consistency_level="Strong")
        hashes = [[_hash(value) for value in values] for values in metadata.values()]
        for start in range(0, len(self.features), ROWS_AT_ONCE):
            rows = [
                {"place": place, "features": self.features[place].tolist()}
                | {_field(number): values[place] for number, values in enumerate(hashes)}
                for place in range(start, min(start + ROWS_AT_ONCE, len(self.features)))
            ]
            self.client.insert(aside, rows)
        self.client.flush(aside)
        self.client.rename_collection(aside, self.collection)
        self.client.load_collection(self.collection)


def _connected() -> Any:
    try:
        from pymilvus import MilvusClient, MilvusException
    except ModuleNotFoundError:
        raise UserError("index.kind: milvus needs pymilvus: pip install 'clip-core[milvus]'") from None
    if not (address := os.environ.get(ADDRESS)):
        raise UserError(f"index.kind: milvus: set {ADDRESS} to the server's address, as http://127.0.0.1:19530")
    try:
        return MilvusClient(address, token=os.environ.get(TOKEN, ""), timeout=SECONDS)
    except MilvusException as error:
        raise UserError(f"{ADDRESS}={address}: no Milvus answers there: {error.message}") from None


def _field(number: int) -> str:
    return f"column_{number}"


def _hash(value: object) -> str:
    """Of a value as JSON has it; numbers that are equal have one. No value has to be quoted in an expression."""
    text = json.dumps(float(value) if isinstance(value, int | float) else value, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
