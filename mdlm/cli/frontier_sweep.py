"""The settings of `mdlm frontier`, and the texts of each, which are kept in the run folder."""

import hashlib
import itertools
import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mdlm.cli.progress import Progress
from mdlm.cli.sample_output import BATCH
from mdlm.cli.sampler_options import sampler_of
from mdlm.files import check_contained

if TYPE_CHECKING:  # not imported at run time, so that `--help` is fast
    from mdlm.run import Run
    from mdlm.samplers import Sampler

FOLDER = "frontier"
"""The folder of a run with the texts and results."""
VARIED = ("sampler", "steps", "temperature", "top_p")
"""The options that may have several values, in the order of the sweep."""


@dataclass(frozen=True)
class Point:
    """A setting of the sweep, by name, and its sampler."""

    settings: dict[str, str]
    sampler: "Sampler"

    @property
    def name(self) -> str:
        return " ".join(f"{name} {value}" for name, value in self.settings.items())


@dataclass(frozen=True)
class Made:
    """The texts of a point, with their cost: NFE of a batch, and seconds without compilation."""

    texts: "list[Sequence[str]]"
    tokens: int
    nfe: float
    seconds: float


def points_of(args: Namespace, run: "Run") -> list[Point]:
    """Returns the settings of the sweep. Raises InputError if one does not fit the run."""
    from mdlm.config.component_text import to_text
    from mdlm.experiment.model import check_sampler

    given = {n: list(dict.fromkeys(v)) for n in VARIED if (v := getattr(args, n)) is not None}
    points = []
    for values in itertools.product(*given.values()):
        chosen = dict(zip(given, values, strict=True))
        rest = dict.fromkeys((*VARIED, "verifier", "top_k", "top_p_rule", "ban", "ban_id"))
        sampler = sampler_of(Namespace(**{**rest, **chosen}), run)
        check_sampler(sampler, run.model)
        settings = {name: str(value) for name, value in chosen.items()}
        points.append(Point(settings or {"sampler": to_text(sampler, lenient=True)}, sampler))
    return points


def texts_of(args: Namespace, run: "Run", point: Point, length: int, progress: Progress) -> Made:
    """Returns the texts of a point, and makes those that are not kept yet."""
    from mdlm.cli.texts_file import TextsFile, fill, read_texts
    from mdlm.config.component_text import to_text

    settings = {
        "step": run.step,
        "fingerprint": run.folder.config().get("fingerprint"),
        "sampler": to_text(point.sampler, lenient=True),
        "length": length,
        "seed": args.seed,
        "stride": args.stride,
        "stop_at_eos": args.stop_at_eos,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    check_contained(run.folder.path)
    folder = run.folder.path / FOLDER
    folder.mkdir(exist_ok=True)

    def made(num: int, first: int) -> Any:
        return run.generate(
            num=num,
            first=first,
            length=length,
            seed=args.seed,
            stride=args.stride,
            stop_at_eos=args.stop_at_eos,
            sampler=point.sampler,
        )

    bar = progress.bar(f"generating {point.name}", "texts")
    with TextsFile(folder / f"texts-{digest}.jsonl", settings) as file:
        size = args.batch or BATCH * len(run.mesh.devices.ravel())
        there = file.count
        fill(file, there, args.num, size, made, bar, keeps_cost=True)
        new = max(0, file.count - there)
    print(f"{file.path}: {point.name}: {file.count} texts, {new} of them new", file=sys.stderr)
    lines = read_texts(file.path, args.num)
    return Made(
        texts=[line["pieces"] for line in lines],
        tokens=sum(len(line["tokens"]) for line in lines),
        nfe=sum(line.get("nfe", 0.0) for line in lines) / len(lines),
        seconds=sum(line.get("seconds", 0.0) for line in lines),
    )
