"""The part of a text that is held out of training, by fixed rules without randomness.

Held out are the last documents if there are many, the end of a single text, or whole groups of
documents that quote one another (so that training does not contain evaluation text).
"""

MANY_DOCUMENTS = 20
"""With at least this many documents, whole documents are held out."""
NEAR = 1000
"""Characters within which a line break is preferred to the exact position of a cut."""


def check_fractions(valid_fraction: float, test_fraction: float) -> None:
    """Raises ValueError if a fraction is negative or nothing is left for training."""
    if not (valid_fraction >= 0 and test_fraction >= 0 and valid_fraction + test_fraction < 1):
        raise ValueError(
            f"valid_fraction={valid_fraction}, test_fraction={test_fraction}: "
            "each must be at least 0, and their sum must be below 1"
        )


def hold_out(documents: list[str], valid: float, test: float) -> tuple[list[str], ...]:
    """Returns train, valid and test documents by the rule of `TextFiles`: the last ones held out.

    `valid` and `test` are fractions of the documents, or of the characters if there are few.
    """
    if len(documents) >= MANY_DOCUMENTS:
        n_valid, n_test = (max(1, round(len(documents) * f)) if f else 0 for f in (valid, test))
        n_train = len(documents) - n_valid - n_test
        return (
            documents[:n_train],
            documents[n_train : n_train + n_valid],
            documents[n_train + n_valid :],
        )
    total = sum(map(len, documents))
    rest, test_part = cut(documents, total - round(total * test)) if test else (documents, [])
    train, valid_part = (
        cut(rest, total - round(total * test) - round(total * valid)) if valid else (rest, [])
    )
    return train, valid_part, test_part


def cut(documents: list[str], position: int) -> tuple[list[str], list[str]]:
    """Splits documents in two at the end of line nearest to a number of characters."""
    for i, text in enumerate(documents):
        if position <= len(text):
            ends = {text.rfind("\n", 0, position) + 1, text.find("\n", position) + 1}
            ends -= {0, len(text)}
            ends |= ({0} if i else set()) | ({len(text)} if i + 1 < len(documents) else set())
            near = sorted(end for end in ends if abs(end - position) <= NEAR)
            at = min(near, key=lambda end: abs(end - position), default=position)
            if 0 < at < len(text):
                return [*documents[:i], text[:at]], [text[at:], *documents[i + 1 :]]
            first = i + (at > 0)  # a whole document, which may be empty, is in one part
            return documents[:first], documents[first:]
        position -= len(text)
    return documents, []


def held_out_topics(
    topics: dict[str, str], valid_fraction: float, test_fraction: float
) -> dict[str, list[str]]:
    """Returns the names of the topics of each split, by the rule of `PythonReference`."""
    groups = [
        (sum(len(topics[topic]) for topic in group), group) for group in quoting_groups(topics)
    ]
    total = sum(size for size, _ in groups)
    room = {"valid": valid_fraction * total, "test": test_fraction * total}
    room = {split: size for split, size in room.items() if size}
    largest = min(room.values(), default=0) / 2
    movable = sum(size for size, _ in groups if size <= largest)
    room["train"] = movable - sum(room.values())
    chosen: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for size, group in sorted(groups, key=lambda entry: (-entry[0], entry[1])):
        split = max(room, key=lambda split: room[split]) if size <= largest else "train"
        chosen[split] += group
        room[split] -= size if size <= largest else 0
    return chosen


def quoting_groups(topics: dict[str, str], words: int = 12) -> list[tuple[str, ...]]:
    """Returns groups of topics; two that share `words` consecutive words are in one group."""
    group_of = {topic: {topic} for topic in topics}
    first: dict[tuple[str, ...], str] = {}
    for topic in sorted(topics):
        text = topics[topic].split()
        for i in range(len(text) - words + 1):
            other = first.setdefault(tuple(text[i : i + words]), topic)
            if group_of[other] is not group_of[topic]:
                group_of[topic] |= group_of[other]
                for member in group_of[topic]:
                    group_of[member] = group_of[topic]
    return sorted({tuple(sorted(group)) for group in group_of.values()})
