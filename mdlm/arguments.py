"""What the command line understands: commands, their arguments, and values replaced by name."""

import argparse
from collections.abc import Sequence

from mdlm.types import InputError
from mdlm.version import __version__

TRAIN_HELP = """\
examples:
  mdlm train experiments/quickstart.py
  mdlm train experiments/quickstart.py --train.steps 2000 --optimizer.learning_rate 1e-3
  mdlm train experiments/owt_small.py --out runs/owt --mesh.fsdp 8

Any value of the experiment can be replaced by its dotted name; `mdlm settings FILE` lists them.
The same command continues a run that was interrupted, from its newest checkpoint. An experiment
file is Python and is executed.

Ctrl-C and SIGTERM save the run, then end it: exit code 130 and 143. 3: too many steps in a row had
a loss or gradient that is not finite (--train.max_skipped); starting it again unchanged will not
help. 2: a mistake in what was asked. 4: another process of the run was lost.

many processes:
  mdlm train big.py --out /shared/big --coordinator node0:1234 --processes 4 --process 0
                     on node0; on the others the same with --process 1, 2 and 3

On a Cloud TPU slice, under `srun` with several tasks, and under mpirun, the same command without
these flags is enough; --processes 1 is for one that is to be alone even there. All processes get
the same experiment and arguments, which is checked; --out is on a disk that all of them share.
Process 0 speaks and writes metrics and samples; all write checkpoints. A signal to one of them
saves and stops all, and all have its exit code. When a process is lost, the others end within a
minute with exit code 4; the same command, started by all, goes on from the newest checkpoint, and
it may be another number of processes then."""

MANY_HELP = """\

many processes (a model that does not fit the devices of one host):
  mdlm {command} RUN --coordinator node0:1234 --processes 4 --process 0
                     on node0; on the others the same with --process 1, 2 and 3

On a Cloud TPU slice, under `srun` with several tasks, and under mpirun, these flags are not needed.
RUN is on a disk that all share; process 0 prints."""

PLAN_HELP = """\
examples:
  mdlm plan experiments/owt_small.py --topology v5e:4x4 --mesh.fsdp 16 --price 1.2
  mdlm plan experiments/owt_small.py --topology gpu:8xH100 --mfu 0.35
  mdlm plan experiments/quickstart.py --topology v6e:2x2 --vocab 70 --json
  mdlm plan big.py --topology v5p:16x16x16 --extrapolate-from v5p:4x4x4

WHERE is a slice of TPUs by the chips along each of its axes (v5e:4x4, v5p:2x2x4, v6e:8x8,
v4:4x4x4), or a number of GPUs (gpu:8xH100, gpu:8xH200, gpu:8xA100).

For v5e, v5p and v6e the very step that would be trained is compiled, by the TPU's compiler and with
no TPU (pip install 'mdlm[tpu]'): half a minute to some minutes. What is printed of memory and
collectives is then what the compiler said. For v4 and GPUs memory is estimated; --estimate does
the same for all. No data are read. Time and money follow from the number of operations, the chips'
peak, and the MFU that you expect; they are no measurement."""

PREPARE_HELP = """\
examples:
  mdlm prepare experiments/books.py --out stores/books
  mdlm prepare experiments/owt_small.py --out gs://bucket/owt --workers 32
  mdlm prepare data.py --data.source.train 'books/*.parquet' --data.tokenizer.vocab_size 8192

FILE is an experiment file, of which only the data matter, or a file with `data = TextData(...)`
alone. The store holds the tokens of every split, an EOS after each document, and the tokenizer;
the length of rows is chosen when it is read, so one store serves many experiments. Train on it with
`TextData(..., store=STORE)`, or with `mdlm train FILE --data.store STORE`.

Interrupted, by whatever, the same command goes on behind the last finished shard, and the store is
the same to the byte in the end, with any number of workers. A finished store is read through, and
left as it is. A store of another source or tokenizer is refused."""

SAMPLE_HELP = """\
examples:
  mdlm sample runs/quickstart --length 512
  mdlm sample runs/quickstart --prompt "The import statement" --num 3 --top-p 0.9
  mdlm sample runs/quickstart --infill "A list is [MASK:8] that can be changed."
  mdlm sample runs/quickstart --temperature 1.0:0.3 --ban "!"
  mdlm sample runs/quickstart --sampler "Ancestral(steps=32, top_p=0.9)"
  mdlm sample runs/quickstart --num 2 --trace sample.trace

[MASK] is a blank of one token, [MASK:8] one of eight; all between blanks stays as it is given.
`mdlm samplers` lists the samplers, and what they can be told. `mdlm view` shows what --trace
records."""

VIEW_HELP = """\
examples:
  mdlm sample runs/quickstart --num 2 --trace sample.trace
  mdlm view sample.trace                        replay the first text in the terminal
  mdlm view sample.trace --row 2 --fps 20       the second text, faster
  mdlm view sample.trace --html sample.html     a page to scrub through, for any browser
  mdlm view sample.trace --gif sample.gif       an animation

Colours tell how probable the network found each token when it wrote it: orange improbable, blue
certain; a red x is a token that was taken back. In a file, a pipe, or where NO_COLOR is set, a
table of the steps is printed instead. The page needs no network and no other file."""


EVAL_HELP = """\
examples:
  mdlm eval runs/owt_small
  mdlm eval runs/owt_small --split test --passes 8
  mdlm eval runs/owt_small --data letters.txt
  mdlm eval runs/owt_small --on wikitext2
  mdlm eval runs/owt_small --on ptb --data copies/ptb      where the hub cannot be reached

NAME is one of wikitext2, wikitext103, ptb, lm1b, lambada, ag_news, arxiv, pubmed: cleaned as in the
literature and strung together in rows as long as the run's (docs/data.md)."""

TOKENIZER_HELP = """\
examples:
  mdlm tokenizer train books/*.txt.gz --vocab-size 8192 --out tokenizers/books
  mdlm tokenizer train experiments/owt_small.py --kind wordpiece --out tokenizers/owt
  mdlm tokenizer train experiments/books.py --data.source.train 'mine/*.txt.gz' --out t

It learns from text files (.txt, .jsonl, .parquet; the last 5% are held out to try it on), or from
the training split of an experiment, read once. The vocabulary holds [BOS], [EOS], [PAD] and [MASK]
beside what is learnt. An experiment uses the folder by its name:

  tokenizer=Pretrained(name="tokenizers/books")

bpe: byte pairs with GPT-2's word rule; every text can be written and comes back as it was.
wordpiece: BERT's, in lower case unless --cased; spaces do not come back, rare signs are [UNK]."""


def parser() -> argparse.ArgumentParser:
    """All commands and their arguments; `command` holds the name of the one that was given."""
    main = argparse.ArgumentParser(
        prog="mdlm", description="Masked diffusion language models: train, evaluate, generate."
    )
    main.add_argument("--version", action="version", version=f"mdlm {__version__}")
    main.add_argument("--traceback", action="store_true", help="show where an error comes from")
    commands = main.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str, epilog: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=help,
            description=help,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        suppress = argparse.SUPPRESS
        sub.add_argument("--traceback", action="store_true", default=suppress, help=suppress)
        return sub

    train = command("train", "train an experiment, or continue its run", TRAIN_HELP)
    train.add_argument("experiment", help="an experiment file (.py)")
    train.add_argument("--out", help="run folder (default: runs/NAME of the experiment)")
    train.add_argument("--seed", type=int, help="the run's seed (short for --seed of the file)")
    train.add_argument(
        "--checkpoints",
        metavar="PATH",
        help="keep checkpoints there: a folder, or a URL such as gs://... (default: in --out)",
    )
    train.add_argument("--init-from", metavar="RUN", help="begin with the parameters of a run")
    train.add_argument("--tensorboard", action="store_true", help="also write TensorBoard events")
    train.add_argument("--wandb", metavar="PROJECT", help="also log to Weights & Biases")
    _many(train)
    train.add_argument(
        "--profile",
        type=int,
        metavar="N",
        help="trace N steps into RUN/profile and print where their time went",
    )

    plan = command("plan", "what a run would take on hardware that is not here", PLAN_HELP)
    plan.add_argument("experiment", help="an experiment file (.py)")
    plan.add_argument("--topology", metavar="WHERE", required=True, help="such as v5e:4x4")
    plan.add_argument(
        "--vocab", type=int, metavar="N", help="tokens there are, where only the text could tell"
    )
    plan.add_argument(
        "--mfu", type=float, default=0.4, help="share of the peak to reckon with (default: 0.4)"
    )
    plan.add_argument("--price", type=float, metavar="USD", help="dollars per chip and hour")
    plan.add_argument(
        "--timeout",
        type=float,
        default=600,
        metavar="S",
        help="seconds after which compiling is given up (default: 600)",
    )
    plan.add_argument(
        "--extrapolate-from",
        metavar="WHERE",
        help="compile for this smaller slice instead, as many rows on each chip",
    )
    plan.add_argument("--estimate", action="store_true", help="compile nothing")
    plan.add_argument("--json", action="store_true", help="print JSON")

    prepare = command("prepare", "turn text into a token store, once", PREPARE_HELP)
    prepare.add_argument("experiment", metavar="FILE", help="an experiment file (.py)")
    prepare.add_argument(
        "--out", metavar="STORE", help="folder, or a URL such as gs://... (default: data.store)"
    )
    prepare.add_argument(
        "--workers", type=int, metavar="N", help="processes that tokenise (default: one per core)"
    )
    prepare.add_argument(
        "--shard-tokens",
        type=int,
        metavar="N",
        help="tokens of a shard, about (default: 67 million); no more is lost when interrupted",
    )

    what = "score a split: nats per token, bits per byte, perplexity"
    score = command("eval", what, EVAL_HELP + "\n" + MANY_HELP.format(command="eval"))
    _a_run(score)
    _many(score)
    score.add_argument("--split", choices=("train", "valid", "test"), help="default: the run's")
    score.add_argument("--data", metavar="FILE", nargs="+", help="score these text files instead")
    score.add_argument(
        "--on", metavar="NAME", help="score a well-known text, for zero-shot numbers"
    )
    score.add_argument("--passes", type=int, help="independent passes over the split")
    score.add_argument("--batch-size", type=int, help="rows scored at a time")

    many = MANY_HELP.format(command="sample")
    sample = command("sample", "generate text", SAMPLE_HELP + "\n" + many)
    _a_run(sample)
    _many(sample)
    what = sample.add_mutually_exclusive_group()
    what.add_argument("--prompt", default="", help="text to continue")
    what.add_argument("--infill", metavar="TEXT", help="text with blanks to fill")
    sample.add_argument("--length", type=int, help="tokens of each text (default: a row)")
    sample.add_argument("--num", type=int, default=1, help="how many texts")
    sample.add_argument("--seed", type=int, default=0)
    sample.add_argument(
        "--sampler", metavar="TEXT", help="another sampler than the run's, as an experiment says it"
    )
    sample.add_argument("--steps", type=int, help="sampling steps per window")
    sample.add_argument(
        "--temperature", metavar="T", help="a number, or FIRST:LAST to change it as a row fills"
    )
    sample.add_argument("--top-p", type=float)
    sample.add_argument(
        "--top-p-rule",
        choices=("reach", "below"),
        help="whether the token that crosses top-p is kept (reach, the default) or dropped",
    )
    sample.add_argument("--top-k", type=int)
    sample.add_argument(
        "--ban", metavar="TEXT", action="append", help="never write the tokens of TEXT"
    )
    sample.add_argument(
        "--ban-id", metavar="ID", type=int, action="append", help="never write the token ID"
    )
    sample.add_argument("--stride", type=int, help="new tokens per window (default: half of it)")
    sample.add_argument("--stop-at-eos", action="store_true", help="end a text at end-of-text")

    sample.add_argument("--trace", metavar="FILE", help="record every step, for `mdlm view`")

    view = command("view", "show how a text was denoised, from `mdlm sample --trace`", VIEW_HELP)
    view.add_argument("trace", metavar="FILE", help="what `mdlm sample --trace FILE` wrote")
    view.add_argument("--row", type=int, default=1, help="which of the texts (default: 1)")
    view.add_argument("--html", metavar="OUT", help="write a page for the browser")
    view.add_argument("--gif", metavar="OUT", help="write an animation")
    view.add_argument("--fps", type=float, default=8.0, help="steps per second (default: 8)")

    convert = command("import", "make a run folder from published MDLM weights")
    convert.add_argument("weights", help=".safetensors in the layout of the MDLM repository")
    convert.add_argument("experiment", help="an experiment file whose network has their sizes")
    convert.add_argument("--out", required=True, help="run folder to make")

    _tokenizer(command("tokenizer", "learn a tokenizer from text", TOKENIZER_HELP))

    command("samplers", "list the samplers and what can be set in each")

    settings = command("settings", "list what can be set in an experiment")
    settings.add_argument("experiment", help="an experiment file (.py)")
    return main


def _tokenizer(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("action", choices=("train",))
    sub.add_argument("texts", metavar="FILE", nargs="+", help="text files, or one experiment (.py)")
    sub.add_argument("--out", required=True, metavar="FOLDER", help="folder to make")
    sub.add_argument("--kind", choices=("bpe", "wordpiece"), default="bpe", help="default: bpe")
    sub.add_argument("--vocab-size", type=int, default=32768, metavar="N", help="default: 32768")
    sub.add_argument("--cased", action="store_true", help="wordpiece: keep case and accents")


def _a_run(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("run_folder", metavar="RUN", help="a run folder")
    sub.add_argument("--step", type=int, help="checkpoint of that step (default: the newest)")
    sub.add_argument("--json", action="store_true", help="print JSON")


def _many(sub: argparse.ArgumentParser) -> None:
    group = sub.add_argument_group("one run of many processes")
    group.add_argument(
        "--coordinator", metavar="HOST:PORT", help="where process 0 can be reached by the others"
    )
    group.add_argument("--processes", type=int, metavar="N", help="how many processes there are")
    group.add_argument("--process", type=int, metavar="I", help="which this is: 0 to N-1")
    group.add_argument(
        "--join-timeout",
        type=int,
        default=60,
        metavar="S",
        help="seconds to wait for the others at the start (default: 60)",
    )


def overrides(rest: Sequence[str]) -> list[tuple[str, str]]:
    """`--a.b value` and `--a.b=value` as pairs."""
    pairs, i = [], 0
    while i < len(rest):
        word = rest[i]
        if not word.startswith("--"):
            raise InputError(f"{word}: settings are given as --name value")
        name, equals, value = word[2:].partition("=")
        if not equals:
            i += 1
            if i == len(rest):
                raise InputError(f"{word}: a value is missing")
            value = rest[i]
        pairs.append((name, value))
        i += 1
    return pairs
