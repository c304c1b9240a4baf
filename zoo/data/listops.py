"""ListOps: the grammar, its generator, its two written forms and its evaluator. Pure Python and NumPy.

An expression is a digit, or an operator applied to two or more expressions, written `[MAX 2 9 [MIN 4 7 ] 0 ]`. The
published files write the same tree left-nested with parentheses, `( ( ( [MAX 2 ) 9 ) ] )`; readers drop those.

The tree law is that of the Long Range Arena (Tay et al. 2020, arXiv 2011.04006), after Nangia & Bowman 2018 (arXiv
1804.06028). Their generator has no seed; this one has, and its output depends on the seed, the law and the chunk number
alone: not on the machine, the Python version or the number of processes.
"""

import dataclasses
import hashlib
import random
from collections.abc import Iterator, Sequence

import numpy as np

OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
END = "]"
# The order of the ids never changes: checkpoints depend on it. (The original orders its vocabulary by Python's string
# hash, anew in every process.) The original also renames "]" to "X", because its tokenizer would drop a bare bracket.
VOCABULARY = ("<pad>", *OPERATORS, END, *map(str, range(10)), "<oov>")
VOCAB_SIZE = len(VOCABULARY)
NUM_CLASSES = 10
PAD_ID, END_ID, ZERO_ID, OOV_ID = 0, 5, 6, 16
_MIN_ID, _MAX_ID, _MED_ID, _SUM_ID = 1, 2, 3, 4
_IDS = {token: i for i, token in enumerate(VOCABULARY) if i not in (PAD_ID, OOV_ID)}
# Part of every chunk's seed: raise it when the generator's output changes.
GENERATOR_VERSION = 1
_MAX_REJECTED = 200_000


@dataclasses.dataclass(frozen=True)
class Law:
    """The law of the expressions; the defaults are those of the Long Range Arena.

    A node at depth d (root: 1) is an operator with probability `p_operator` if d < `max_depth`, else a uniform digit.
    An operator has a uniform number of arguments from 2 to `max_args`, and is itself uniform of MIN, MAX, MED and SM. A
    tree is accepted if `min_length` < tokens < `max_length`, where operators, digits and "]" count and parentheses do
    not.

    Raises:
      ValueError: a bound makes no sense.
    """

    max_depth: int = 10
    max_args: int = 10
    min_length: int = 500
    max_length: int = 2000
    p_operator: float = 0.25

    def __post_init__(self) -> None:
        if not 2 <= self.max_depth <= 100:
            raise ValueError(f"max_depth must be from 2 to 100, got {self.max_depth}.")
        if self.max_args < 2:
            raise ValueError(f"max_args must be at least 2, got {self.max_args}.")
        if not 1 <= self.min_length < self.max_length - 1:
            raise ValueError(
                f"lengths must satisfy 1 <= min_length < max_length - 1 (both bounds are exclusive), "
                f"got {self.min_length} and {self.max_length}."
            )
        if not 0 < self.p_operator < 1:
            raise ValueError(f"p_operator must lie between 0 and 1, got {self.p_operator}.")

    def key(self) -> str:
        """The law as text, the same on every machine; part of every chunk's seed."""
        lengths = f"{self.min_length}/{self.max_length}"
        return f"{self.max_depth}/{self.max_args}/{lengths}/{float(self.p_operator).hex()}"


# The same law in small, for smoke tests and examples: trees of 21 to 99 tokens, up to four operators deep.
SMOKE_LAW = Law(max_depth=5, max_args=10, min_length=20, max_length=100)


class _TooLongError(Exception):
    pass


def generate(law: Law, seed: int, chunk: int, count: int) -> list[tuple[bytes, int]]:
    """Draws accepted expressions, independent and not de-duplicated.

    Args:
      law: the law of the expressions.
      seed: any integer.
      chunk: number of this chunk; chunks are independent streams, so they can be drawn in any order, anywhere.
      count: how many expressions.

    Returns:
      `count` pairs of tokens (one byte per token, ids of `VOCABULARY`) and label (0..9).

    Raises:
      ValueError: the law accepts next to nothing.
    """
    text = f"listops/{GENERATOR_VERSION}/{law.key()}/{seed}/{chunk}"
    # An integer seed and `random()` are the parts of `random` whose streams Python promises to keep.
    draw = random.Random(int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")).random
    trees = _trees(law, draw)
    return [next(trees) for _ in range(count)]


def _trees(law: Law, draw) -> Iterator[tuple[bytes, int]]:
    p, max_length, arities = law.p_operator, law.max_length, law.max_args - 1
    # A leaf's digit comes from the same draw as its being a leaf. The last factor keeps the product below 10 in floats.
    digits = 10 / (1 - p) * (1 - 2**-50)
    deepest = law.max_depth - 1
    tokens: list[int] = []
    append, extend = tokens.append, tokens.extend

    def operator(depth: int) -> int:
        """Appends the tokens of an operator at `depth` to `tokens` and returns its value."""
        start = len(tokens)
        # Past the bound the tree is lost whatever follows; the rest of it need not be drawn.
        if start >= max_length:
            raise _TooLongError
        append(0)
        arity = 2 + int(draw() * arities)
        if depth == deepest:
            values = [int(draw() * 10) for _ in range(arity)]
            extend([value + ZERO_ID for value in values])
        else:
            values = []
            for _ in range(arity):
                r = draw()
                if r > p:
                    value = int((r - p) * digits)
                    append(value + ZERO_ID)
                else:
                    value = operator(depth + 1)
                values.append(value)
        append(END_ID)
        tokens[start] = kind = 1 + int(draw() * 4)
        return _apply(kind, values)

    rejected = 0
    while rejected < _MAX_REJECTED:
        rejected += 1
        if draw() > p:
            continue
        tokens.clear()
        try:
            label = operator(1)
        except _TooLongError:
            continue
        if law.min_length < len(tokens) < max_length:
            rejected = 0
            yield bytes(tokens), label
    raise ValueError(f"{law} accepts none of {_MAX_REJECTED:,} trees in a row; widen its bounds.")


def _apply(kind: int, values: list[int]) -> int:
    """The value of an operator; MED sorts `values` in place, and floors the mean of the middle two where n is even."""
    if kind == _MIN_ID:
        return min(values)
    if kind == _MAX_ID:
        return max(values)
    if kind == _MED_ID:
        values.sort()
        n = len(values)
        return (values[(n - 1) >> 1] + values[n >> 1]) >> 1
    return sum(values) % 10


def tokenize(source: str, *, strict: bool = True) -> np.ndarray:
    """Token ids of an expression in either written form.

    Args:
      source: blank-separated tokens; parentheses are dropped unchecked (`evaluate` checks them).
      strict: refuse unknown tokens; otherwise they become `OOV_ID`.

    Returns:
      uint8 [T].

    Raises:
      ValueError: an unknown token, with its position.
    """
    words = source.replace("(", " ").replace(")", " ").split()
    try:
        return np.array([_IDS[word] for word in words], np.uint8)
    except KeyError as error:
        if not strict:
            return np.array([_IDS.get(word, OOV_ID) for word in words], np.uint8)
        word = error.args[0]
        raise ValueError(
            f"token {words.index(word) + 1} is {word!r}; ListOps has {' '.join(OPERATORS)} ] and digits."
        ) from None


def detokenize(tokens: Sequence[int] | np.ndarray | bytes) -> str:
    """The plain form, `[MAX 2 9 ]`, of token ids (integer [T]); padding is left out.

    Raises:
      ValueError: an id outside the vocabulary.
    """
    return " ".join(VOCABULARY[token] for token in _as_ids(tokens) if token != PAD_ID)


def to_source(tokens: Sequence[int] | np.ndarray | bytes) -> str:
    """The published form, `( ( ( [MAX 2 ) 9 ) ] )`, of the token ids (integer [T]) of one whole expression.

    Raises:
      ValueError: the tokens are not one whole expression, with the position.
    """

    def apply(kind: int, parts: list[str]) -> str:
        return "( " * (len(parts) + 1) + VOCABULARY[kind] + "".join(f" {part} )" for part in parts) + f" {END} )"

    return _fold(_as_ids(tokens), VOCABULARY[ZERO_ID:OOV_ID], apply)


def evaluate(expression: str | Sequence[int] | np.ndarray | bytes) -> int:
    """The value (0..9) of one whole expression.

    Args:
      expression: token ids (integer [T], no padding), or text in either written form. Parentheses, where there are any,
        must be those of the published form.

    Raises:
      ValueError: the expression is malformed, with the position (from 1) among its tokens.
    """
    if not isinstance(expression, str):
        return _fold(_as_ids(expression), range(10), _apply)
    tokens = tokenize(expression).tobytes()
    value = _fold(tokens, range(10), _apply)
    if "(" in expression or ")" in expression:
        _check_parentheses(expression, to_source(tokens))
    return value


def _check_parentheses(source: str, expected: str) -> None:
    if source.strip() == expected:
        return
    found, right = source.split(), expected.split()
    for position, (a, b) in enumerate(zip(found, right, strict=False), 1):
        if a != b:
            raise ValueError(f"token {position} (parentheses counted) is {a!r}, where {b!r} belongs.")
    if len(found) != len(right):
        raise ValueError(f"the expression has {len(found)} tokens (parentheses counted), where {len(right)} belong.")


def _as_ids(tokens: Sequence[int] | np.ndarray | bytes) -> Sequence[int]:
    ids = tokens if isinstance(tokens, bytes) else np.asarray(tokens).tolist()
    if ids and not 0 <= min(ids) <= max(ids) < VOCAB_SIZE:
        position = next(i for i, token in enumerate(ids) if not 0 <= token < VOCAB_SIZE)
        raise ValueError(f"token {position + 1} has id {ids[position]}; ids run from 0 to {VOCAB_SIZE - 1}.")
    return ids


def _fold(tokens: Sequence[int], leaves: Sequence, apply):
    """Reduces a tree bottom-up, without recursion, by `leaves[digit]` and `apply(operator id, values)`."""
    stack: list[tuple[int, int, list]] = []
    values: list = []
    root_end = 1  # of a bare digit
    for position, token in enumerate(tokens, 1):
        if ZERO_ID <= token < OOV_ID:
            values.append(leaves[token - ZERO_ID])
        elif token == END_ID:
            if not stack:
                raise ValueError(f"token {position} is ']' but no operator is open.")
            if not values:
                raise ValueError(
                    f"the operator at token {stack[-1][1]} is closed at token {position} without arguments."
                )
            kind, _, outer = stack.pop()
            outer.append(apply(kind, values))
            values = outer
            if not stack and len(values) == 1:
                root_end = position
        elif _MIN_ID <= token <= _SUM_ID:
            stack.append((token, position, values))
            values = []
        else:
            raise ValueError(f"token {position} is {VOCABULARY[token]!r}, which no expression contains.")
    if stack:
        kind, position, _ = stack[-1]
        raise ValueError(
            f"the expression breaks off after token {len(tokens)}: "
            f"{VOCABULARY[kind]!r} at token {position} is not closed."
        )
    if len(values) > 1:
        raise ValueError(f"the expression ends at token {root_end}, but {VOCABULARY[tokens[root_end]]!r} follows.")
    if not values:
        raise ValueError("the expression is empty.")
    return values[0]
