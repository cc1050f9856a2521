"""The planned memory of a step of ViT-B/16 with RoBERTa-base, both towers training, beside what it takes: batch 32."""

from tests.step_memory import measured

WITHIN = 0.15
CASES = [("fp32", None, False), ("fp32", 8, False), ("bf16", None, False), ("bf16", 8, True)]


def prove() -> dict:
    """GiB planned and measured, of each case."""
    seen = {}
    for precision, micro_batch, checkpoints in CASES:
        found = measured(precision, micro_batch, checkpoints, "vit-b-16", 32)
        error = found["planned"] / found["measured"] - 1
        name = f"{precision}, micro_batch {micro_batch or 'null'}" + ", activation checkpoints" * checkpoints
        seen[name] = {key: round(num_bytes / 2**30, 2) for key, num_bytes in found.items()} | {"error": round(error, 3)}
        print(name, seen[name], flush=True)
        assert abs(error) < WITHIN
    return seen
