"""A few seconds of good and bad requests together: the short form of the proof `soak`, and what it calls growing."""

from pathlib import Path

import pytest

from clip_core.serve.assemble import MODELS
from tests.proofs.soak import assert_flat, soak
from tests.tiny_release import Release

SECONDS = 15
WARM_UP = [50.0, 80.0, 95.0]


def test_among_bad_requests_good_ones_are_answered_and_the_processes_that_begin_are_those_that_end(
    release: Release, tmp_path: Path
) -> None:
    asked, mib = soak(tmp_path, release, SECONDS)
    assert len(asked) == 5 and min(asked.values()) > 0, asked
    assert mib.keys() == {"gateway", "tritonserver", "/dev/shm", *(MODELS.keys() - {"clip_text", "clip_image"})}


def test_memory_that_grows_after_the_first_third_is_named() -> None:
    assert_flat({"gateway": [*WARM_UP, 100.0, 103.0, 99.0, 101.0, 104.0, 100.0]})
    with pytest.raises(AssertionError, match=r"grows, in MiB: \{'text_core': \(101.0, 107.0\)\}"):
        assert_flat({"gateway": [100.0] * 9, "text_core": [*WARM_UP, 99.0, 101.0, 103.0, 105.0, 107.0, 109.0]})
