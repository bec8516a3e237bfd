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


def make_published(blocks, *names):
    """One block for each name, found under it and held by nobody; the first name is the longest idle."""
    taken = blocks.allocate(len(names))
    for block_id, name in zip(taken, names, strict=True):
        blocks.publish(block_id, name)
        blocks.release((block_id,))
    blocks.check_integrity()
    return taken


def test_idle_block_is_free_and_found_until_it_is_handed_out():
    blocks = BlockManager(num_blocks=3, block_size=4)
    first, second = make_published(blocks, b"first", b"second")
    assert (blocks.num_free, blocks.num_idle) == (3, 2)
    blocks.allocate(1)
    assert blocks.find(b"first") == first, "a block with nothing to offer goes first"
    assert blocks.allocate(1) == (first,), "then the one that was idle for the longest time"
    assert blocks.find(b"first") is None
    assert blocks.find(b"second") == second
    blocks.check_integrity()


def test_block_is_idle_only_when_its_last_holder_has_gone():
    blocks = BlockManager(num_blocks=2, block_size=4)
    (block_id,) = make_published(blocks, b"a")
    blocks.hold((block_id,))
    blocks.hold((block_id,))
    assert blocks.is_held_as([block_id, block_id])
    assert not blocks.is_held_as([block_id])
    blocks.release((block_id,))
    assert not blocks.is_idle(block_id)
    blocks.release((block_id,))
    assert blocks.is_idle(block_id)
    blocks.check_integrity()


def test_end_of_a_prefix_goes_before_its_beginning():
    blocks = BlockManager(num_blocks=2, block_size=4)
    table = blocks.allocate(2)
    blocks.publish(table[0], b"beginning")
    blocks.publish(table[1], b"end")
    blocks.release(table)
    assert blocks.allocate(1) == (table[1],)
    assert blocks.find(b"beginning") == table[0]


def test_second_block_with_the_same_content_is_not_the_one_that_is_found():
    blocks = BlockManager(num_blocks=2, block_size=4)
    first, second = blocks.allocate(2)
    blocks.publish(first, b"a")
    blocks.publish(second, b"a")
    assert blocks.find(b"a") == first
    blocks.release((second,))
    blocks.check_integrity()
    assert not blocks.is_idle(second)


def test_withdrawn_block_stays_with_its_holder_and_is_found_by_nobody():
    blocks = BlockManager(num_blocks=1, block_size=4)
    (block_id,) = blocks.allocate(1)
    blocks.publish(block_id, b"a")
    blocks.withdraw((block_id,))
    assert blocks.find(b"a") is None
    assert blocks.num_free == 0
    blocks.release((block_id,))
    blocks.check_integrity()
    assert blocks.num_idle == 0
