"""Compares all samplers on one trained run: network calls, speed, and entropy of the samples.

    python -m benchmarks.samplers runs/quickstart
    python -m benchmarks.samplers runs/quickstart --samplers "Ancestral(steps=32, top_p=0.9)"

NFE is the number of network calls for one batch. The entropy is the unigram entropy of all texts,
in nats, to compare with that of the run's validation split: if it is much lower, samples repeat
themselves, which a likelihood under another model would mistake for quality.
"distribution" says whether samples follow the network's distribution: always ("exact"), in the
limit of many steps ("limit"), or not ("biased").
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import harness
from mdlm.config.component_text import from_text
from mdlm.evals.generated.statistics import entropy
from mdlm.run import load
from mdlm.samplers import Sampler

DISTRIBUTIONS = {
    "FirstHitting()": "exact",
    "FirstHitting(per_call=4)": "limit",
    "Ancestral(steps=32)": "limit",
    "Ancestral(steps=32, grid='cosine')": "limit",
    "Ancestral(steps=128)": "limit",
    "Ancestral(steps=1000)": "limit",
    "Reverse(steps=128)": "limit",
    "Remask(steps=128)": "limit",
    "Remask(steps=128, strategy='rescale')": "limit",
    "Remask(steps=128, strategy='confidence')": "biased",
    "Remask(steps=128, strategy='forward-backward')": "limit",
    "Remask(steps=128, strategy='dfm')": "limit",
    "RemaskLoop(steps=128)": "biased",
    "Psi(steps=128)": "limit",
    "Parallel(order='entropy')": "exact",
    "Parallel(order='margin')": "exact",
    "Parallel()": "biased",
    "Parallel(rule=Share(steps=32), block_size=32)": "biased",
    "Parallel(rule=MaskGIT(steps=32))": "biased",
    "Parallel(rule=EntropyBound(gamma=0.5), order='entropy')": "biased",
    "Parallel(rule=Threshold(tau=0.9), temperature=0.0)": "biased",
    "Parallel(rule=Factor(factor=1.0), temperature=0.0)": "biased",
    "PathPlanning(steps=128)": "biased",
    "Editing()": "biased",
    "Ancestral(steps=128, temperature=0.8)": "biased",
    "Ancestral(steps=128, top_p=0.9)": "biased",
}
"""Samplers of the table, and whether they follow the network's distribution."""


def run(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Prints the table; returns its rows."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.samplers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_folder", metavar="RUN", help="a run folder")
    parser.add_argument(
        "--num", type=int, default=16, help="texts per sampler (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samplers", nargs="+", metavar="TEXT", help="measure these samplers only")
    parser.add_argument(
        "--json", metavar="FILE", help="also write the rows, with a sample each, to FILE"
    )
    args = parser.parse_args(argv)
    texts = args.samplers or list(DISTRIBUTIONS)
    samplers = [from_text(text, Sampler) for text in texts]
    opened = load(args.run_folder)
    rows = []
    valid = opened.dataset.valid.rows.all()
    data = valid.tokens[valid.loss_mask]
    print(f"validation split: unigram entropy {entropy(data):.3f} nats\n")
    print("| sampler | distribution | NFE | tokens/s | unigram entropy |\n|---|---|---|---|---|")
    for text, sampler in zip(texts, samplers, strict=True):
        with harness.working(text):
            out = opened.generate(num=args.num, seed=args.seed, sampler=sampler)
        tokens = np.concatenate([text.tokens for text in out.texts])
        row = {
            "sampler": text,
            "law": DISTRIBUTIONS.get(text, ""),
            "NFE": out.nfe,
            "tokens/s": out.tokens_per_second,
            "entropy": entropy(tokens),
            "text": out.texts[0].text,
        }
        rows.append(row)
        print(
            f"| `{text}` | {row['law']} | {out.nfe} | {out.tokens_per_second:,.0f}"
            f" | {row['entropy']:.3f} |",
            flush=True,
        )
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(rows, file, indent=1)
    return rows


if __name__ == "__main__":
    raise SystemExit(harness.main(run))
