"""Which part of a text is held out of training: fixed rules, nothing random.

Held out are the last documents of many, the end of a single text, or whole groups of documents
that quote one another (so that no evaluation asks for what training showed).
"""

MANY_DOCUMENTS = 20
"""From this many documents on, whole documents are held out."""
NEAR = 1000
"""Characters within which a line break is preferred to the exact place of a cut."""


def check_fractions(valid_fraction: float, test_fraction: float) -> None:
    """ValueError unless both are shares of the text and leave some of it for training."""
    if not (valid_fraction >= 0 and test_fraction >= 0 and valid_fraction + test_fraction < 1):
        raise ValueError(
            f"valid_fraction={valid_fraction}, test_fraction={test_fraction}: "
            "neither may be negative, and their sum must be below 1"
        )


def hold_out(documents: list[str], valid: float, test: float) -> tuple[list[str], ...]:
    """Train, valid and test by the rule of `TextFiles`: the last shares of the documents."""
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


def cut(documents: list[str], place: int) -> tuple[list[str], list[str]]:
    """Parts documents at a count of characters, moved to the nearest end of a line."""
    for i, text in enumerate(documents):
        if place <= len(text):
            ends = {text.rfind("\n", 0, place) + 1, text.find("\n", place) + 1} - {0, len(text)}
            ends |= ({0} if i else set()) | ({len(text)} if i + 1 < len(documents) else set())
            near = sorted(end for end in ends if abs(end - place) <= NEAR)
            at = min(near, key=lambda end: abs(end - place), default=place)
            before, after = [*documents[:i], text[:at]], [text[at:], *documents[i + 1 :]]
            return [part for part in before if part], [part for part in after if part]
        place -= len(text)
    return documents, []


def held_out_topics(
    topics: dict[str, str], valid_fraction: float, test_fraction: float
) -> dict[str, list[str]]:
    """Names of the topics of each split, by the rule of `PythonReference`."""
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
    """The topics, parted so that two with `words` words in a row in common are together."""
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
