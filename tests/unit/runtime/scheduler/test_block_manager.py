"""Block ids are handed out and taken back exactly once."""

from __future__ import annotations

import pytest

from dedicate_runtime.core.batch import NULL_BLOCK_ID
from dedicate_runtime.scheduler.block_manager import BlockManager


def test_every_block_but_the_null_block_is_handed_out_once():
    blocks = BlockManager(num_blocks=5, block_size=16)
    taken = blocks.allocate(5)
    assert sorted(taken) == [1, 2, 3, 4, 5]
    assert NULL_BLOCK_ID not in taken
    assert blocks.num_free == 0
    blocks.release(taken)
    blocks.check_integrity()
    assert blocks.num_free == 5


def test_block_that_is_free_cannot_be_released():
    blocks = BlockManager(num_blocks=2, block_size=16)
    (block_id,) = blocks.allocate(1)
    blocks.release([block_id])
    with pytest.raises(KeyError):
        blocks.release([block_id])


@pytest.mark.parametrize(("num_tokens", "num_blocks"), [(0, 0), (1, 1), (16, 1), (17, 2)])
def test_blocks_are_counted_with_the_last_one_in_part(num_tokens, num_blocks):
    assert BlockManager(num_blocks=4, block_size=16).count_blocks(num_tokens) == num_blocks


def test_empty_cache_is_refused():
    with pytest.raises(ValueError, match="hold nothing"):
        BlockManager(num_blocks=0, block_size=16)
