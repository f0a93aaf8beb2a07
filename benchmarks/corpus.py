"""The files of a corpus of books, as settings of an experiment by dotted name."""


def books(folder: str) -> dict[str, str]:
    """Settings that point the splits of `experiments/books.py` to a folder."""
    files = {"train": "train-*.txt.gz", "valid": "valid.txt.gz", "test": "test.txt.gz"}
    return {f"data.source.{split}": f"{folder}/{file}" for split, file in files.items()}
