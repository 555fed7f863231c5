"""The benchmark's design: which cells, in which order, how often, how long."""

from collections import Counter
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from transcoder.bench import design
from transcoder.bench.design import Turn
from transcoder.bench.result import Cell

numbers = st.lists(st.integers(1, 8), min_size=1, max_size=2)


def test_the_cells_are_every_packing_into_equal_containers() -> None:
    names = [cell.name for cell in design.cells([4, 1, 2], worker=True)]
    assert names == ["bare 1", "1 × 1", "worker 1 × 1", "bare 2", "1 × 2", "2 × 1", "worker 1 × 2",
                     "bare 4", "1 × 4", "2 × 2", "4 × 1", "worker 1 × 4"]  # fmt: skip
    assert [cell.name for cell in design.cells([3], bare=False)] == ["1 × 3", "3 × 1"]


@given(numbers)
def test_every_number_of_stacks_has_its_reference_among_the_cells(stacks: list[int]) -> None:
    cells = design.cells(stacks)
    assert {design.reference(cell) for cell in cells} <= set(cells)
    assert design.whole(cells) == Cell(containers=1, stacks=max(stacks))


@given(numbers, st.booleans(), st.integers(0, 99))
def test_a_block_has_every_cell_once_and_the_reference_twice(stacks: list[int], worker: bool, seed: int) -> None:
    cells = design.cells(stacks, worker=worker)
    twice = design.whole(cells)
    for block in islice(design.blocks(cells, twice, seed), 5):
        assert Counter(block) == Counter([*map(Turn, cells), Turn(twice, again=True)])


@given(numbers, st.integers(0, 99))
def test_within_a_square_every_turn_follows_every_other_and_holds_every_place_equally_often(
    stacks: list[int], seed: int
) -> None:
    cells = design.cells(stacks)
    turns = len(cells) + 1
    size = turns * 2 if turns % 2 else turns
    orders = design.blocks(cells, design.whole(cells), seed)
    for square in (list(islice(orders, size)) for _ in range(2)):
        after = Counter(pair for block in square for pair in pairwise(block))
        assert len(after) == turns * (turns - 1)
        assert len(set(after.values())) == 1
        places = Counter((place, turn) for block in square for place, turn in enumerate(block))
        assert len(places) == turns * turns
        assert len(set(places.values())) == 1


def test_the_same_seed_gives_the_same_orders_and_another_one_others() -> None:
    cells = design.cells([2, 4])
    first, second, other = (list(islice(design.blocks(cells, cells[1], seed), 20)) for seed in (1, 1, 2))
    assert first == second != other


@pytest.mark.parametrize(
    ("deviation", "left", "fixed", "wanted"),
    [(0.02, 1e6, 8, 8), (0.1, 1e6, 117, 117), (0.1, 100, 18, 117), (0.1, 9.9, 8, 117), (0.1, -5, 8, 117)],
    ids=["the pilot is enough", "as many as the formula says", "cut by the time", "none more", "late"],
)
def test_the_number_of_blocks_is_what_the_pilot_asks_for_and_the_time_allows(
    deviation: float, left: float, fixed: int, wanted: int
) -> None:
    assert design.fixed_blocks(deviation, 0.03, seconds=10, left=left) == (fixed, wanted)


def test_a_block_lasts_what_those_before_it_did_and_at_first_what_is_guessed() -> None:
    assert design.block_seconds([], turns=5, guess=2) == 10
    assert design.block_seconds([9, 30, 10], turns=5, guess=2) == 10


def test_the_time_left_counts_down_to_the_end_and_never_below_it() -> None:
    assert design.seconds_left(3, 10) == 30
    assert design.seconds_left(3, 10, running=4) == 26
    assert design.seconds_left(3, 10, running=50) == 20
    assert design.seconds_left(0, 10, running=4) == 0
