"""Near-duplicates are found exactly, and a group is what resembles its representative."""

import numpy as np
import pytest

from clip_core.data.near import Looks, quarters_of


def made(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes and thumbnails: some alone, some near others in hash, in colours, or in both, and many that are flat."""
    draw = np.random.default_rng(seed)
    hashes = draw.integers(0, 2**64, num, dtype=np.uint64)
    thumbnails = draw.integers(0, 256, (num, 768), dtype=np.uint8)
    flat = slice(0, num // 4)
    hashes[flat] = 0
    thumbnails[flat] = np.tile(draw.integers(200, 256, (num // 4, 3), dtype=np.uint8), (1, 256))
    for copy, of in enumerate(draw.integers(0, num // 2, num // 3), start=num // 2):
        noise = draw.integers(-4, 5, 768) if copy % 3 else draw.integers(-33, 34, 768) * (draw.random(768) < 0.02)
        thumbnails[copy] = np.clip(thumbnails[of] + noise, 0, 255)
        hashes[copy] = hashes[of]
        for bit in draw.choice(64, draw.integers(0, 9), replace=False):
            hashes[copy] ^= np.uint64(1) << np.uint64(bit)
    return hashes, thumbnails


def alike(hashes: np.ndarray, thumbnails: np.ndarray, one: int, distance: int) -> np.ndarray:
    """Which pictures resemble `one`, by a look at every one."""
    difference = np.abs(thumbnails.astype(int) - thumbnails[one])
    near = np.array([int(h ^ hashes[one]).bit_count() <= distance for h in hashes])
    return near & (difference.mean(1) <= 3) & (difference.max(1) <= 32)


@pytest.mark.parametrize("distance", range(8))
def test_groups_are_those_that_a_look_at_every_pair_finds(distance: int) -> None:
    hashes, thumbnails = made(400, seed=distance)
    order = np.random.default_rng(1).permutation(400)
    expected = np.full(400, -1)
    for row in order:
        if expected[row] < 0:
            expected[alike(hashes, thumbnails, row, distance) & (expected < 0)] = row
    found = Looks(hashes, quarters_of(thumbnails), thumbnails, distance).leaders(order)
    assert found.tolist() == expected.tolist()
    assert 200 < len(np.unique(found)) < 390


def test_the_first_that_a_picture_resembles_is_the_one_that_a_look_at_every_pair_finds() -> None:
    hashes, thumbnails = made(401, seed=9)
    draw = np.random.default_rng(2)
    asked, among = draw.permutation(401)[:200], draw.random(401) < 0.5
    expected = np.full(401, -1)
    for row in asked:
        expected[alike(hashes, thumbnails, row, 4) & among & (expected < 0)] = row
    found = Looks(hashes, quarters_of(thumbnails), thumbnails, 4).first_alike(asked, among)
    assert found.tolist() == expected.tolist()
    assert 50 < (found >= 0).sum() < 200
    assert ((found != np.arange(401)) & (found >= 0)).sum() > 10  # not itself alone


def test_in_a_row_of_slowly_changing_greys_no_one_is_grouped_with_a_friend_s_friend() -> None:
    greys = np.arange(0, 256, 3)
    thumbnails = np.repeat(greys[:, None], 768, axis=1).astype(np.uint8)
    hashes = np.zeros(len(greys), dtype=np.uint64)
    found = Looks(hashes, quarters_of(thumbnails), thumbnails, 4).leaders(np.arange(len(greys)))
    assert found.tolist() == [row - row % 2 for row in range(len(greys))]
