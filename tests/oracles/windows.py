"""Windows, packing and pseudorandom order, one element at a time."""

from collections.abc import Sequence


def read_window(
    tokens: Sequence[int], window: int, seq_len: int, eos_id: int
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Inputs, targets, positions, document numbers of one window."""
    ids, targets, positions, documents = [], [], [], []
    position = document = 0
    for column in range(seq_len):
        place = window * seq_len + column
        id = tokens[place] if place < len(tokens) else eos_id
        if column > 0:
            position += 1
            if id == eos_id:
                position, document = 0, document + 1
        ids.append(id)
        targets.append(tokens[place + 1] if place + 1 < len(tokens) else -100)
        positions.append(position)
        documents.append(document)
    return ids, targets, positions, documents


def first_fit_decreasing(sizes: Sequence[int], capacity: int) -> list[list[int]]:
    """Longest first, each into the first bin with room."""
    bins: list[list[int]] = []
    for number in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        for one in bins:
            if sum(sizes[i] for i in one) + sizes[number] <= capacity:
                one.append(number)
                break
        else:
            bins.append([number])
    return bins


_MASK = (1 << 64) - 1


def mix(x: int) -> int:
    """SplitMix64's output function in plain integers."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)


def permute(index: int, size: int, key: int) -> int:
    """The keyed permutation, one index at a time."""
    num_left = next(a for a in range(1, size + 1) if a * a >= size)
    num_right = -(-size // num_left)
    while True:
        left, right = divmod(index, num_right)
        for number in range(8):
            round_key = key + (number + 1) * 0x9E3779B97F4A7C15
            if number % 2 == 0:
                left = (left + mix((right + round_key) & _MASK)) % num_left
            else:
                right = (right + mix((left + round_key) & _MASK)) % num_right
        index = left * num_right + right
        if index < size:
            return index
