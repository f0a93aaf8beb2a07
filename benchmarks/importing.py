"""Time and memory of `mdlm import` on a made-up folder, beside a plain copy of its bytes.

    python -m benchmarks.importing --gigabytes 2

The folder has the layout of A2D's Qwen3 in four shards of bfloat16. Memory is that of the process
alone (RssAnon): pages of the files that are read and written belong to the disk's cache, and are
counted apart (RssFile).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import ml_dtypes
import numpy as np
import tokenizers
from safetensors.numpy import save_file
from tokenizers import AddedToken, models

WIDTH, HIDDEN, VOCAB = 2048, 6144, 32768


def write_folder(folder: Path, gigabytes: float) -> int:
    """Writes a folder of about so many gigabytes; returns the bytes of its tensors."""
    block = 2 * WIDTH * (4 * WIDTH + 3 * HIDDEN)
    depth = max(1, round((gigabytes * 1e9 - 4 * VOCAB * WIDTH) / block))
    config = {
        "model_type": "a2d-llama",
        "hidden_size": WIDTH,
        "num_hidden_layers": depth,
        "num_attention_heads": 16,
        "intermediate_size": HIDDEN,
        "vocab_size": VOCAB,
        "mask_token_id": VOCAB - 1,
    }
    tables = ("model.embed_tokens.weight", "lm_head.weight")
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(tables, (VOCAB, WIDTH))
    shapes["model.norm.weight"] = (WIDTH,)
    for i in range(depth):
        at = f"model.layers.{i}."
        for name in ("q", "k", "v", "o"):
            shapes[f"{at}self_attn.{name}_proj.weight"] = (WIDTH, WIDTH)
        shapes |= {f"{at}mlp.{n}_proj.weight": (HIDDEN, WIDTH) for n in ("gate", "up")}
        shapes[f"{at}mlp.down_proj.weight"] = (WIDTH, HIDDEN)
        for name in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"{at}{name}.weight"] = (WIDTH,)
    noise = np.random.default_rng(0).normal(size=HIDDEN * WIDTH * 6).astype(ml_dtypes.bfloat16)
    names, total, where = list(shapes), 0, {}
    for shard in range(4):
        own = names[shard::4]
        file = f"model-{shard + 1:05}-of-00004.safetensors"
        values = {n: noise[: int(np.prod(shapes[n]))].reshape(shapes[n]) for n in own}
        save_file(values, folder / file, {"format": "pt"})
        where |= dict.fromkeys(own, file)
        total += sum(value.nbytes for value in values.values())
    index = {"weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    vocab = {f"t{i}": i for i in range(VOCAB)}
    built = tokenizers.Tokenizer(models.WordLevel(vocab, "t0"))
    built.add_special_tokens([AddedToken(f"t{VOCAB - 1}", special=True)])
    built.save(str(folder / "tokenizer.json"))
    return total


class Peak:
    """The largest values of this process's memory while the context is open, in bytes."""

    def __enter__(self) -> "Peak":
        self.anonymous = self.of_files = 0
        self._open = True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while self._open:
            lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
            values = {line.split(":")[0]: line.split()[1] for line in lines if line[:3] == "Rss"}
            self.anonymous = max(self.anonymous, 1024 * int(values["RssAnon"]))
            self.of_files = max(self.of_files, 1024 * int(values["RssFile"]))
            time.sleep(0.01)

    def __exit__(self, *_) -> None:
        self._open = False
        self._thread.join()


def imported(source: Path, out: Path) -> dict[str, float]:
    """Imports a folder in this process; returns seconds and memory."""
    from mdlm.interop.importing import import_folder

    with Peak() as before:
        time.sleep(0.1)
    began = time.perf_counter()
    with Peak() as peak:
        import_folder(source, out, overrides=[])
        os.sync()
    return {
        "seconds": time.perf_counter() - began,
        "above": peak.anonymous - before.anonymous,
        "files": peak.of_files,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time and memory of an import.")
    parser.add_argument("--gigabytes", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(imported(*map(Path, args.one))))
        return
    with tempfile.TemporaryDirectory(dir=".") as place:
        source = Path(place) / "source"
        source.mkdir()
        total = write_folder(source, args.gigabytes)
        print(f"{total / 1e9:.2f} GB of tensors, the largest {2 * VOCAB * WIDTH / 1e6:.0f} MB")
        for _ in range(args.rounds):
            began = time.perf_counter()
            shutil.copytree(source, Path(place) / "copy")
            os.sync()
            copied = time.perf_counter() - began
            words = [sys.executable, "-m", "benchmarks.importing", "--one"]
            words += [str(source), str(Path(place) / "run")]
            found = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
            print(
                f"copy {copied:.1f} s, import {found['seconds']:.1f} s (ratio"
                f" {copied / found['seconds']:.2f}), {found['above'] / 1e6:.0f} MB above the start"
            )
            for name in ("copy", "run"):
                shutil.rmtree(Path(place) / name)


if __name__ == "__main__":
    main()
