"""The split of a picture whose source names none, and the names that splits have elsewhere."""

from hashlib import sha256

PERCENT = 5  # of the pictures, for valid and for test each, where params.yaml says null
SPLIT_NAMES = {"train": "train", "valid": "valid", "validation": "valid", "val": "valid", "test": "test"}


def split_of(image_id: str, valid_percent: int | None, test_percent: int | None) -> str:
    """The picture's split: a function of its id, so that new pictures move no old one."""
    for_valid, for_test = (PERCENT if percent is None else percent for percent in (valid_percent, test_percent))
    bucket = int.from_bytes(sha256(image_id.encode()).digest()[:4]) % 100
    if bucket < for_test:
        return "test"
    return "valid" if bucket < for_test + for_valid else "train"
