"""Questions about digits on a grid, by how many looks at the image must follow each other.

A question of one step names what to look for. In one of two or three, what is found first says where or for what to
look next. Right of, below and above are neighbouring cells, and are asked about where a digit stands there.
"""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from typing import Any, NamedTuple

import numpy as np

EMPTY = -1  # the class of a cell without a digit
RIGHT, BELOW, ABOVE, LEFT = (0, 1), (1, 0), (-1, 0), (0, -1)
AROUND = (RIGHT, BELOW, ABOVE, LEFT)

Cell = tuple[int, int]  # row, column


class Question(NamedTuple):
    kind: str
    text: str
    answer: str
    reads: tuple[Cell, ...]  # the cells that it names or asks for; without the last, nobody knows the answer


Asked = Iterator[tuple[Any, ...]]  # text, answer, *reads


class Kind(NamedTuple):
    steps: int
    ask: Callable[["Canvas"], Asked]


class Canvas:
    """Where digits stand. digits int [grid, grid]."""

    def __init__(self, digits: np.ndarray):
        self.grid = len(digits)
        self.cells = [(row, column) for row in range(self.grid) for column in range(self.grid)]
        self._digits: list[list[int]] = digits.tolist()
        self.filled = [cell for cell in self.cells if self.at(cell) != EMPTY]
        places: dict[int, list[Cell]] = defaultdict(list)
        for cell in self.filled:
            places[self.at(cell)].append(cell)
        self.once = {digit: found[0] for digit, found in places.items() if len(found) == 1}
        self.largest = max(places)

    def at(self, cell: Cell) -> int:
        """EMPTY beyond the edge too."""
        row, column = cell
        inside = 0 <= row < self.grid and 0 <= column < self.grid
        return self._digits[row][column] if inside else EMPTY

    def larger(self, cell: Cell) -> str:
        return str(sum(self.at(other) > self.at(cell) for other in self.filled))

    def to_corner(self, cell: Cell) -> int:
        """Steps along rows and columns."""
        return sum(min(at, self.grid - 1 - at) for at in cell)


def beside(cell: Cell, step: Cell) -> Cell:
    return cell[0] + step[0], cell[1] + step[1]


def place(cell: Cell) -> str:
    """As on a chess board: A1 stands at the top left."""
    return f"{chr(ord('A') + cell[1])}{cell[0] + 1}"


# --- the kinds ------------------------------------------------------------------------------------------------------


def _place(canvas: Canvas) -> Asked:
    for cell in canvas.cells:
        answer = "none" if canvas.at(cell) == EMPTY else str(canvas.at(cell))
        yield f"Which digit is at {place(cell)}?", answer, cell


def _where(canvas: Canvas) -> Asked:
    for digit, cell in canvas.once.items():
        yield f"Where is {digit}?", place(cell), cell


def _row(canvas: Canvas) -> Asked:
    for digit, cell in canvas.once.items():
        yield f"In which row is {digit}?", place(cell)[1:], cell


def _column(canvas: Canvas) -> Asked:
    for digit, cell in canvas.once.items():
        yield f"In which column is {digit}?", place(cell)[0], cell


def _largest(canvas: Canvas) -> Asked:
    if canvas.largest in canvas.once:
        yield "Which digit is the largest?", str(canvas.largest), canvas.once[canvas.largest]


def _beside(words: str, step: Cell) -> Callable[[Canvas], Asked]:
    def ask(canvas: Canvas) -> Asked:
        for digit, cell in canvas.once.items():
            other = beside(cell, step)
            if canvas.at(other) != EMPTY:
                yield f"What is {words} {digit}?", str(canvas.at(other)), cell, other

    return ask


def _above_largest(canvas: Canvas) -> Asked:
    if cell := canvas.once.get(canvas.largest):
        other = beside(cell, ABOVE)
        if canvas.at(other) != EMPTY:
            yield "What is above the largest?", str(canvas.at(other)), cell, other


def _even_below_largest(canvas: Canvas) -> Asked:
    if cell := canvas.once.get(canvas.largest):
        other = beside(cell, BELOW)
        if canvas.at(other) != EMPTY:
            yield "Is the digit below the largest even?", "no" if canvas.at(other) % 2 else "yes", cell, other


def _nearer_to_corner(canvas: Canvas) -> Asked:
    far = {digit: canvas.to_corner(cell) for digit, cell in canvas.once.items()}
    for a, one in canvas.once.items():
        for b, other in canvas.once.items():
            if far[a] != far[b]:
                nearer = a if far[a] < far[b] else b
                yield f"Which is nearer to a corner, {a} or {b}?", str(nearer), one, other


def _how_many_larger(canvas: Canvas) -> Asked:
    for cell in canvas.filled:
        yield f"How many are larger than the one at {place(cell)}?", canvas.larger(cell), cell


def _sum_of_row(canvas: Canvas) -> Asked:
    for digit, cell in canvas.once.items():
        others = [other for other in canvas.filled if other[0] == cell[0] and other != cell]
        if others:  # else the question would name the sum
            total = digit + sum(canvas.at(other) for other in others)
            yield f"What is the sum of the row of {digit}?", str(total), cell, *others


def _right_of_below(canvas: Canvas) -> Asked:
    for digit, cell in canvas.once.items():
        middle = beside(cell, BELOW)
        end = beside(middle, RIGHT)
        if EMPTY not in (canvas.at(middle), canvas.at(end)):
            yield f"What is right of the digit below {digit}?", str(canvas.at(end)), cell, middle, end


def _right_of_below_largest(canvas: Canvas) -> Asked:
    if cell := canvas.once.get(canvas.largest):
        middle = beside(cell, BELOW)
        end = beside(middle, RIGHT)
        if EMPTY not in (canvas.at(middle), canvas.at(end)):
            yield "What is right of the digit below the largest?", str(canvas.at(end)), cell, middle, end


def _how_many_larger_below(canvas: Canvas) -> Asked:
    for digit, cell in canvas.once.items():
        other = beside(cell, BELOW)
        if canvas.at(other) != EMPTY:
            yield f"How many are larger than the digit below {digit}?", canvas.larger(other), cell, other


KINDS: dict[str, Kind] = {
    "place": Kind(1, _place),
    "where": Kind(1, _where),
    "row": Kind(1, _row),
    "column": Kind(1, _column),
    "largest": Kind(1, _largest),
    "right_of": Kind(2, _beside("right of", RIGHT)),
    "below": Kind(2, _beside("below", BELOW)),
    "above_largest": Kind(2, _above_largest),
    "even_below_largest": Kind(2, _even_below_largest),
    "nearer_to_corner": Kind(2, _nearer_to_corner),
    "how_many_larger": Kind(2, _how_many_larger),
    "sum_of_row": Kind(2, _sum_of_row),
    "right_of_below": Kind(3, _right_of_below),
    "right_of_below_largest": Kind(3, _right_of_below_largest),
    "how_many_larger_below": Kind(3, _how_many_larger_below),
}


def questions(kind: str, canvas: Canvas) -> Iterator[Question]:
    """All of a kind that the canvas has one answer to."""
    for text, answer, *reads in KINDS[kind].ask(canvas):
        yield Question(kind, text, answer, tuple(reads))


def choose(kind: str, canvas: Canvas, rng: np.random.Generator, known: Collection[Cell] = ()) -> Question | None:
    """One of a kind that cells already told do not answer; each possible answer is equally likely."""
    by_answer: dict[str, list[Question]] = defaultdict(list)
    for question in questions(kind, canvas):
        if question.reads[-1] not in known:
            by_answer[question.answer].append(question)
    if not by_answer:
        return None
    alike = list(by_answer.values())[rng.integers(len(by_answer))]
    return alike[rng.integers(len(alike))]
