"""Each entry of docs/troubleshooting.md quotes what is really said, and a test asserts it."""

import ast
import functools
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "troubleshooting.md"


@dataclass(frozen=True)
class Entry:
    """A heading's test, and what the file of that test has of the message.

    `said` are the parts of the heading that the package's sources have; none if the heading
    describes what is seen, or quotes the operating system.
    """

    heading: str
    test: str
    asserts: str
    said: tuple[str, ...] = ()


ENTRIES = (
    Entry(
        "... expands to more than 1000 times its size; or: ... above the limit of ...",
        "fuzz/test_hostile_kinds.py::test_a_hostile_file_is_refused",
        "MDLM_MAX_EXPANSION",
        ("expands to more than ", " times its size", "above the limit of "),
    ),
    Entry(
        "character '☃' (U+2603) has no token, and the tokenizer has no unknown token",
        "data/tokens/test_spelling.py::test_a_character_without_a_token_is_refused_by_its_place",
        "'☃' (U+2603) has no",
        ("character", " (U+", "has no token, and the tokenizer has no unknown token"),
    ),
    Entry(
        'A number says "12.34% of the tokens are [UNK]"',
        "data/test_dataset.py::test_a_protocol_counts_unknown_tokens",
        " of the tokens are [UNK]",
        (" of the tokens are ",),
    ),
    Entry(
        "a document has 100,000,000 characters without a certain end of a word of the tokenizer",
        "data/text/test_chunks.py::test_document_without_possible_cut_is_refused",
        "has 250 characters .* at most 200",
        (" characters without a certain end of a word of the tokenizer",),
    ),
    Entry(
        "tokenizer ...: switched off its dropout of 0.1, its truncation",
        "data/tokens/test_plain_text.py::test_the_same_text_gives_the_same_tokens",
        "dropout of 0.5",
        (": switched off ", "its dropout of ", "truncation"),
    ),
    Entry(
        "eos='old' is a piece of text of my-tokenizer: name a special token",
        "data/tokens/test_plain_text.py::test_a_learnt_piece_has_no_role",
        "eos='old' is a piece of text",
        (" is a piece of text of ", ": name a special token"),
    ),
    Entry(
        "part-valid.txt is a file of the valid split and also a training file",
        "data/preparation/test_prepare.py::test_a_held_out_file_among_the_training_files_is_refused",
        " split and also",
        (" is a file of the ", " split and also a training file"),
    ),
    Entry(
        'A number says "rows hold 24.1% of the text"',
        "data/test_dataset.py::test_a_protocol_says_what_the_rows_leave_out",
        "rows hold ",
        ("rows hold ", " of the text"),
    ),
    Entry(
        "too few for one row of length=1024",
        "data/rows/test_rows.py::test_rows_against_a_loop",
        "too few for one row",
        ("too few for one row of length=",),
    ),
    Entry(
        "A .txt file became one document, although it has separators",
        "data/test_sources.py::test_a_separator_may_be_typed_with_backslashes",
        "\\n\\n",
    ),
    Entry(
        "'text' is null, not text",
        "data/text/test_files.py::test_null_texts_are_dropped_and_counted",
        "'text' is null, not text",
        (" is null, not text",),
    ),
    Entry(
        "a.txt.gz: what follows the packed data is left out",
        "data/text/test_files.py::test_what_follows_packed_data_is_left_out",
        "what follows the packed data is left out",
        (": what follows the packed data is left out",),
    ),
    Entry(
        "tokenizer.model is SentencePiece's file, no tokenizer.json",
        "data/tokens/test_tokenizer.py::test_a_folder_with_the_name_of_a_tokenizer_on_the_hub",
        "tokenizer.model is SentencePiece's",
        (" is SentencePiece's file, no tokenizer.json",),
    ),
    Entry(
        "--prompt is not UTF-8: byte 0xc3 at offset 3",
        "e2e/test_cli.py::test_bad_input_is_one_line",
        "--prompt is not UTF-8: byte 0xc3 at offset 3",
        (" is not UTF-8: ", "byte 0x", " at offset "),
    ),
    Entry(
        "eval --data says \"no field 'content', only text\"",
        "data/text/test_files.py::test_parquet_that_cannot_be_read",
        "no field 'body', only text",
        ("no field ", ", only "),
    ),
    Entry(
        "this run's network goes from left to right: it fills a blank without looking at what "
        "follows",
        "generation/test_batches.py::test_a_network_that_goes_from_left_to_right_says_so",
        "without looking at what follows",
        (
            "this run's network goes from left to right: it fills a blank without looking at what "
            "follows",
        ),
    ),
    Entry(
        'Samples have lines "[end of document]"',
        "generation/test_template.py::test_a_shown_text",
        "[end of document]",
        ("[end of document]",),
    ),
    Entry(
        "'[MASK:3 not' is no blank",
        "generation/test_template.py::test_what_is_no_blank",
        "'[MASK:3 not' is no blank",
        (" is no blank",),
    ),
    Entry(
        "... this name is not UTF-8 here: choose another, or set PYTHONUTF8=1",
        "runs/test_checkpoints.py::test_a_folder_whose_name_is_not_utf_8_is_refused",
        "not UTF-8 here: choose another, or set PYTHONUTF8=1",
        (" this name is not UTF-8 here: choose another, or set PYTHONUTF8=1",),
    ),
    Entry(
        "config.json: ..., damaged, or not a file of mdlm",
        "runs/test_damaged.py::test_other_damaged_files_are_one_line",
        "not a file of mdlm",
        ("config.json", "damaged, or not a file of mdlm"),
    ),
    Entry(
        "The run is of mdlm ..., this is ...",
        "runs/test_damaged.py::test_a_run_of_another_version_says_which",
        "The run is of mdlm 9.0.0, this is ",
        ("The run is of mdlm ", ", this is "),
    ),
    Entry(
        "file not found when a run is evaluated from another folder",
        "data/test_places.py::test_a_relative_path_is_taken_from_the_folder_of_the_start",
        "gone.txt",
        ("file not found",),
    ),
    Entry(
        "... cannot be written as text, so no run can record it",
        "config/test_component_text.py::test_functions_are_refused_in_one_line",
        "cannot be written as text",
        (" cannot be written as text, so no run can record it",),
    ),
    Entry(
        "there is no ..., so a run of it could not be opened",
        "train/test_from_python.py::test_what_could_not_be_opened_is_not_trained",
        ", so a run of it could not be opened",
        ("there is no ", ", so a run of it could not be opened"),
    ),
    Entry(
        "Exit code 3, steps in a row ... had a loss, gradient or parameters that are not finite",
        "train/test_guard.py::test_a_run_that_makes_no_progress_ends_and_names_its_checkpoint",
        "3 steps in a row",
        (" steps in a row", "had a loss, gradient or parameters that are not finite"),
    ),
    Entry(
        "... is being trained by another process",
        "runs/test_past.py::test_one_writer_at_a_time_and_a_lock_ends_with_its_process",
        "is being trained by",
        ("being trained", " by another process"),
    ),
    Entry(
        "... has other bytes than were written, ... is missing",
        "runs/test_digests.py::test_bytes_that_pass_for_others_load_only_unverified",
        "has other bytes",
        ("has other bytes than were written", " is missing"),
    ),
    Entry(
        "... values that are not finite",
        "train/test_soundness.py::test_a_model_of_nan_is_refused_everywhere",
        "not finite",
        (" values that are not finite",),
    ),
    Entry(
        "No space left on device",
        "test_full_disk.py::test_a_command_says_what_is_kept_and_how_to_go_on",
        "No space left on device; files written before are intact",
    ),
    Entry(
        "... was made from another text",
        "data/preparation/test_changed_text.py::test_the_command_says_so",
        "was made from another text",
        (" was made from another text",),
    ),
    Entry(
        "its manifest lacks the ... split",
        "data/store/test_store.py::test_a_store_that_lacks_a_split_of_its_text_is_refused",
        "its manifest lacks the valid split",
        ("its manifest lacks the ", " split"),
    ),
    Entry(
        "seed=...: must be in [0, 2**63)",
        "test_seeds.py::test_others_are_refused_everywhere",
        "2**63",
        ("must be in [0, 2**63)",),
    ),
    Entry(
        "the run has saved checkpoints, and ... has none",
        "runs/test_past.py::test_a_run_whose_checkpoints_are_gone_does_not_begin_anew_unasked",
        "has saved checkpoints, and there has none",
        ("the run has saved checkpoints, and ", " has none"),
    ),
    Entry(
        "its tokenizer is ..., so its embeddings would mean other tokens",
        "train/test_origin.py::test_another_tokenizer_is_refused_or_shares_what_both_have",
        "other tokens. Give",
        ("its tokenizer is ", ", so its embeddings would mean other tokens"),
    ),
    Entry(
        "process.schedule=...: alpha(0) = ...: must be about 1",
        "schedules/test_check.py::test_a_schedule_that_is_none_is_refused_when_composed",
        "alpha(0) = 0: must be about 1",
        (": must be about 1",),
    ),
    Entry(
        "the text of train (text) is another than when the run began",
        "runs/test_past.py::test_a_run_goes_on_with_the_text_it_began_with",
        "the text of train (text) is another",
        ("the text of ", " is another than when the run began"),
    ),
    Entry(
        "N stretches of 1000 characters without a break were cut",
        "data/tokens/test_training.py::test_a_stretch_without_a_break_is_cut_for_learning",
        "400 stretches of 1000 characters without a break were cut",
        (" stretches of ", " characters without a break were cut"),
    ),
    Entry(
        "Processes do not join although all are started, and http_proxy is set",
        "cluster/test_launch.py::test_no_proxy_is_asked_for_the_coordinator",
        "no_grpc_proxy",
    ),
    Entry(
        "the hub does not answer",
        "data/text/test_hub.py::test_it_is_asked_once_and_the_line_says_what_to_do",
        "the hub does not answer",
        ("the hub does not answer",),
    ),
    Entry(
        "mdlm has other commands than these documents, or import mdlm has no load",
        "e2e/test_cli.py::test_version_and_help",
        "mdlm-jax",
    ),
    Entry(
        "Python 3.11 or newer is needed",
        "test_makefile.py::test_too_old_or_missing_is_said",
        "Python 3.11 or newer is needed",
        ("Python 3.11 or newer is needed",),
    ),
    Entry(
        "no home folder: compiled programs are not kept",
        "cli/test_output.py::test_without_a_home_folder_it_is_said_that_programs_are_not_kept",
        "no home folder: compiled programs are not kept",
        ("no home folder: compiled programs are not kept",),
    ),
)


def literals(path: Path) -> str:
    """The texts of a Python file, each in a line; of an f-string, its fixed parts."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    return "\n".join(text for text in found if isinstance(text, str))


@functools.cache
def sources() -> str:
    """The texts of the package, and the Makefile."""
    texts = [literals(path) for path in sorted((ROOT / "mdlm").rglob("*.py"))]
    return "\n".join([*texts, (ROOT / "Makefile").read_text(encoding="utf-8")])


def test_each_entry_has_its_test():
    text = DOCUMENT.read_text(encoding="utf-8").replace("`", "")
    headings = [line[4:] for line in text.splitlines() if line.startswith("### ")]
    assert headings == [entry.heading for entry in ENTRIES]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.heading[:40])
def test_an_entry_quotes_what_is_said_and_tested(entry):
    for part in entry.said:
        assert part.strip() in entry.heading and part in sources()
    file, _, name = entry.test.partition("::")
    path = ROOT / "tests" / file
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    # A pattern escapes what means something else in it.
    assert entry.asserts.replace("\\", "") in literals(path).replace("\\", "")
