"""Where the files of a corpus of books lie, as settings of an experiment by dotted name."""


def books(folder: str) -> dict[str, str]:
    """The splits of `experiments/books.py` in a folder."""
    files = {"train": "train-*.txt.gz", "valid": "valid.txt.gz", "test": "test.txt.gz"}
    return {f"data.source.{split}": f"{folder}/{file}" for split, file in files.items()}
