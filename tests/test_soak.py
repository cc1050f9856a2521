"""What the proof `soak` calls memory that grows."""

import pytest

from tests.proofs.soak import assert_flat

WARM_UP = [50.0, 80.0, 95.0]


def test_memory_that_grows_after_the_first_third_is_named() -> None:
    assert_flat({"gateway": [*WARM_UP, 100.0, 103.0, 99.0, 101.0, 104.0, 100.0]})
    with pytest.raises(AssertionError, match=r"grows, in MiB: \{'text_core': \(101.0, 107.0\)\}"):
        assert_flat({"gateway": [100.0] * 9, "text_core": [*WARM_UP, 99.0, 101.0, 103.0, 105.0, 107.0, 109.0]})
