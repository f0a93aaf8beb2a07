"""A token store written the slow way, to read back."""

import hashlib
import io
import json

import fsspec
import numpy as np

from mdlm.data.store.manifest import Manifest, Shard, SplitRecord


def write_store(
    url, documents, tokenizer, *, eos, shard_tokens, source="S", made_by="T", dtype="uint16"
):
    """Writes lists of token lists by split. Shards are cut after `shard_tokens` tokens, anywhere.

    A document ends in the shard that has its last token; an empty one of no EOS, in the shard
    that is being written.
    """
    fs, path = fsspec.core.url_to_fs(url)
    fs.makedirs(path, exist_ok=True)
    splits, width = {}, {"uint16": 2, "uint32": 4}[dtype]
    for split, texts in documents.items():
        shards, tokens, ends, counts = [], [], [], np.zeros(tokenizer.vocab.size, np.int64)
        empty = 0

        def close(split=split, shards=shards):
            nonlocal tokens, ends, empty
            name = f"{split}-{len(shards):05d}"
            data = b"".join(int(token).to_bytes(width, "little") for token in tokens)
            stops = b"".join(int(end).to_bytes(8, "little") for end in ends)
            fs.pipe_file(f"{path}/{name}.bin", data)
            fs.pipe_file(f"{path}/{name}.ends", stops)
            shards.append(
                Shard(
                    name=name,
                    tokens=len(tokens),
                    documents=len(ends),
                    empty=empty,
                    bytes=10 * len(ends),
                    characters=9 * len(ends),
                    sha256=hashlib.sha256(data).hexdigest(),
                    ends_sha256=hashlib.sha256(stops).hexdigest(),
                )
            )
            tokens, ends, empty = [], [], 0

        for text in texts:
            text = [int(token) for token in text]
            for token in text + ([] if eos is None else [eos]):
                if len(tokens) == shard_tokens:
                    close()
                tokens.append(token)
                counts[token] += 1
            ends.append(len(tokens))
            empty += not text
        close()
        splits[split] = SplitRecord(shards=tuple(shards), complete=True)
        buffer = io.BytesIO()
        np.save(buffer, counts)
        fs.pipe_file(f"{path}/{split}-counts.npy", buffer.getvalue())
    manifest = Manifest(
        source=source,
        revision=None,
        tokenizer=made_by,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab.size,
        eos=eos,
        dtype=dtype,
        splits=splits,
    )
    if hasattr(tokenizer, "backend"):
        fs.pipe_file(f"{path}/tokenizer.json", tokenizer.backend.to_str().encode())
        fs.pipe_file(f"{path}/special_tokens.json", tokenizer._special().encode())
    manifest.write(url)
    return manifest


def change_manifest(url, change):
    """Rewrites the manifest's values in place."""
    fs, path = fsspec.core.url_to_fs(url)
    values = json.loads(fs.cat_file(f"{path}/manifest.json"))
    change(values)
    fs.pipe_file(f"{path}/manifest.json", json.dumps(values).encode())
