"""Genomes: documents from FASTA and BED files, their splits, and errors."""

import gzip

import numpy as np
import pytest

from mdlm.data.text import fasta
from mdlm.data.text.fasta import Fasta, reverse_complement
from mdlm.data.tokenizers import Dna
from mdlm.errors import InputError

GENOME = """\
>chr1 a chromosome
ACGTAC
GTacgt

>chr2
NNNNAC
NGTNN
>chr3\tmore
TTTTRYWCCC\r
"""


def write(path, text):
    data = text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def joined(source, split):
    """The documents of a split, from its pieces."""
    out, parts = [], []
    for piece in source.pieces(split):
        parts.append(piece.text)
        if piece.ends:
            out.append("".join(parts))
            parts = []
    assert not parts
    return out


@pytest.mark.parametrize("ending", ["fa", "fna.gz"])
def test_records_are_documents(tmp_path, ending):
    files = write(tmp_path / f"genome.{ending}", GENOME)
    source = Fasta(files=files, valid="chr2", test=("chr3",))
    assert source.splits == ("train", "valid", "test")
    assert source.documents("train") == ["ACGTACGTACGT"]
    assert source.documents("valid") == ["NNNNACNGTNN"]
    assert source.documents("test") == ["TTTTNNNCCC"]
    keep = Fasta(files=files, valid="chr2", soft_masked="keep")
    assert keep.splits == ("train", "valid")
    assert keep.documents("train") == ["ACGTACGTacgt", "TTTTNNNCCC"]
    hard = Fasta(files=files, valid="chr2", soft_masked="N", unknown="part")
    assert hard.documents("train") == ["ACGTACGT", "TTTT", "CCC"]
    assert hard.documents("valid") == ["AC", "GT"]
    for split in ("train", "valid"):
        assert joined(hard, split) == hard.documents(split)


def test_reverse_complement_is_in_train_only(tmp_path):
    files = write(tmp_path / "g.fa", GENOME)
    source = Fasta(files=files, valid="chr2", reverse_complement=True, soft_masked="keep")
    assert source.documents("train") == [
        "ACGTACGTacgt",
        "acgtACGTACGT",
        "TTTTNNNCCC",
        "GGGNNNAAAA",
    ]
    assert source.documents("valid") == ["NNNNACNGTNN"]
    assert reverse_complement("AACGN") == "NCGTT"


def test_intervals_with_splits(tmp_path):
    files = write(tmp_path / "g.fa", GENOME)
    bed = "track name=x\n# a comment\nchr3\t0\t4\ttrain\nchr1\t8\t12\ttrain\nchr1\t0\t4\tvalid\n"
    bed += "chr1\t2\t6\ttrain\nchr3 7 10 test\n\n"
    source = Fasta(files=files, intervals=write(tmp_path / "i.bed", bed))
    assert source.splits == ("train", "valid", "test")
    assert source.documents("train") == ["ACGT", "GTAC", "TTTT"]  # by record, then by line
    assert source.documents("valid") == ["ACGT"] and source.documents("test") == ["CCC"]
    longer = Fasta(files=files, intervals=str(tmp_path / "i.bed"), interval_length=6)
    assert longer.documents("train") == ["ACGT", "GTACGT", "TTTTNN"]  # cut at the record's end
    with pytest.raises(InputError, match="give one of the two"):
        Fasta(files=files, intervals=str(tmp_path / "i.bed"), valid="chr1").documents("train")


def test_intervals_without_splits_and_fractions(tmp_path):
    files = write(tmp_path / "g.fa", GENOME)
    bed = write(tmp_path / "i.bed", "chr1\t0\t4\nchr3\t0\t4\n")
    by_record = Fasta(files=files, intervals=bed, test="chr3")
    assert by_record.splits == ("train", "test")
    assert by_record.documents("train") == ["ACGT"] and by_record.documents("test") == ["TTTT"]
    bases = "".join(np.random.default_rng(0).choice(list("ACGT"), 1000))
    whole = write(tmp_path / "w.fa", f">one\n{bases}\n")
    shares = Fasta(files=whole, valid_fraction=0.1, test_fraction=0.05)
    assert [shares.documents(split) for split in shares.splits] == [
        [bases[:850]],
        [bases[850:950]],
        [bases[950:]],
    ]
    assert Fasta(files=whole, test_fraction=0).splits == ("train", "valid")


def test_reading_resumes_from_any_position(tmp_path, monkeypatch):
    monkeypatch.setattr(fasta, "PIECE", 5)
    files = write(tmp_path / "g.fa", GENOME)
    source = Fasta(files=files, valid="chr2", reverse_complement=True)
    whole = list(source.pieces("train"))
    assert [len(piece.text) for piece in whole] == [5, 5, 2, 5, 5, 2, 5, 5, 5, 5]
    assert joined(source, "train") == source.documents("train")
    for n, piece in enumerate(whole):
        assert list(source.pieces("train", piece.position)) == whole[n + 1 :]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ACGT\n", "g.fa is not a FASTA file: line 1 must be >NAME"),
        ("\n\n", "g.fa is not a FASTA file: it is empty"),
        ("", "g.fa is not a FASTA file: it is empty"),
        (">a\nACGT\nACXGT\n", "g.fa, record a: 'X' at base 7 stands for no base of DNA"),
        (">a\nACGU\n", "record a: 'U' at base 4"),
        (">a\nAC-GT\n", "record a: '-' at base 3"),
        (">a\nACé\n", "record a: 'Ã' at base 3"),
        (">a\n>b\nACGT\n", "g.fa, record a has no bases"),
        (">a\nACGT\n>\nACGT\n", "g.fa:3: the record has no name, must be >NAME"),
        (">a\nACGT\n>a\nACGT\n", "g.fa: record a occurs twice"),
    ],
)
def test_invalid_fasta(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        Fasta(files=write(tmp_path / "g.fa", text)).documents("train")


@pytest.mark.parametrize(
    ("bed", "message"),
    [
        ("", "i.bed has no intervals"),
        ("chr1 0\n", "i.bed:1: 'chr1 0': must be record, start and end"),
        ("chr1 0 4\nchr1 a 4\n", "i.bed:2: 'chr1 a 4': must be record, start"),
        ("chr1 -1 4\n", "i.bed:1: 'chr1 -1 4': must be record, start"),
        ("chr1 4 4\n", "i.bed:1: chr1:4-4 is empty"),
        ("chr1 0 13\n", "i.bed:1: chr1:0-13 is not within the 12 bases of the record"),
        ("chr1 0 4\nchr9 0 4\n", "i.bed:2: no record chr9 in genome .*, only chr1, chr2, chr3"),
        ("chr1 0 4 gene\n", "i.bed:1: split 'gene': must be one of train, valid"),
        ("chr1 0 4 train\nchr1 4 8\n", "i.bed: 1 of 2 intervals name a split"),
    ],
)
def test_invalid_intervals(tmp_path, bed, message):
    files = write(tmp_path / "g.fa", GENOME)
    source = Fasta(files=files, intervals=write(tmp_path / "i.bed", bed), valid_fraction=0)
    with pytest.raises(InputError, match=message):
        source.documents("train")


def test_other_errors(tmp_path):
    files = write(tmp_path / "g.fa", GENOME)
    with pytest.raises(InputError, match="no record chr7 in genome"):
        Fasta(files=files, valid="chr7").documents("train")
    with pytest.raises(InputError, match="the train split is empty"):
        Fasta(files=files, valid=("chr1", "chr2", "chr3")).documents("train")
    with pytest.raises(InputError, match="i.bed cannot be read"):
        Fasta(files=files, intervals=str(tmp_path / "i.bed")).documents("train")
    (tmp_path / "g.fa.gz").write_bytes(gzip.compress(GENOME.encode())[:-9])
    with pytest.raises(InputError, match="g.fa.gz cannot be unpacked"):
        Fasta(files=str(tmp_path / "g.fa.gz")).documents("train")
    for wrong, message in (
        ({"files": ()}, "files is empty"),
        ({"files": "a", "interval_length": 8}, "interval_length=8: .*needs intervals"),
        ({"files": "a", "valid": "c", "test": ("b", "c")}, "record c is in both"),
        ({"files": "a", "valid_fraction": 1.0}, "valid_fraction=1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            Fasta(**wrong)


@pytest.mark.corpora
def test_a_bacterium(corpora):
    source = Fasta(files=str(corpora / "dna" / "ecoli-k12-mg1655.fna.gz"))
    parts = [source.documents(split) for split in source.splits]
    sizes = [sum(map(len, part)) for part in parts]
    assert sum(sizes) == 4_641_652 and sizes[1:] == [232_083, 232_083]
    [ids] = Dna().build([]).encode(parts[2])
    assert set(np.unique(ids).tolist()) == {0, 1, 2, 3}
