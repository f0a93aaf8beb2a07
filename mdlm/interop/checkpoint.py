"""A folder in the form of the Hugging Face hub: config.json, safetensors, and a tokenizer's files.

Nothing of it is executed, and PyTorch pickles are not opened.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from mdlm.errors import InputError
from mdlm.foreign.typed_json import decoded
from mdlm.interop.layout import Config
from mdlm.runs.weights import DTYPES

WANTED = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model")
"""The files of a repository on the hub that are fetched."""
SHARD = re.compile(r"[\w-][\w.-]*\.safetensors")
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
LARGEST = 64 * 2**20
"""Most bytes of a JSON file that is read."""


class Checkpoint:
    """A folder with a published checkpoint.

    `shapes` and `kinds` are those of its tensors by name; `config` has the values of config.json.
    Raises InputError, with the file, if something is missing, damaged, or a pickle.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.config = Config(self.json("config.json"), str(folder / "config.json"))
        self._files = self._shards()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.kinds: dict[str, str] = {}
        for path in sorted(set(self._files.values())):
            self._describe(path)
        for name, path in self._files.items():
            if name not in self.shapes:
                raise InputError(f"{path}: lacks the tensor {name}, which its index names")

    def dtype(self, name: str) -> np.dtype:
        """Returns the dtype of a tensor. Raises InputError if it has none that networks have."""
        kind = self.kinds[name]
        if kind not in DTYPES:
            raise InputError(
                f"{self.folder}: {name} is {kind}, not {' or '.join(DTYPES)}: convert it to one of"
                " these"
            )
        return DTYPES[kind]

    def read(self, name: str) -> np.ndarray:
        """Returns one tensor."""
        try:
            with safe_open(self._files[name], "numpy") as file:
                return file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise InputError(f"{self._files[name]}: {name} cannot be read: {error}") from error

    def json(self, name: str) -> dict[str, Any]:
        """Returns the object in a JSON file. Raises InputError if there is none."""
        path = self.folder / name
        try:
            if path.stat().st_size > LARGEST:
                raise InputError(f"{path}: more than {LARGEST >> 20} MiB, so it is no {name}")
            return decoded(path.read_bytes(), dict[str, Any])
        except FileNotFoundError as error:
            raise InputError(f"{self.folder}: has no {name}") from error
        except (ValueError, OSError) as error:
            raise InputError(f"{path}: not a readable JSON file ({error})") from error

    def optional(self, name: str) -> dict[str, Any]:
        """Returns the object in a JSON file, an empty one if there is no such file."""
        return self.json(name) if (self.folder / name).is_file() else {}

    def _shards(self) -> dict[str, Path]:
        """Returns the file of each tensor, by the tensor's name."""
        if (self.folder / "model.safetensors.index.json").is_file():
            files = self.json("model.safetensors.index.json").get("weight_map")
            if not isinstance(files, Mapping) or not files:
                raise InputError(f"{self.folder}/model.safetensors.index.json: has no weight_map")
            for name, file in files.items():
                if not isinstance(file, str) or not SHARD.fullmatch(file):
                    raise InputError(
                        f"{self.folder}/model.safetensors.index.json: {file!r:.60}, the file of"
                        f" {name:.60}, is not the name of a .safetensors file in the folder"
                    )
            for file in sorted(set(files.values())):
                if not (self.folder / file).is_file():
                    raise InputError(f"{self.folder}: the shard {file} is missing; fetch it again")
            return {name: self.folder / file for name, file in files.items()}
        found = [path for path in sorted(self.folder.glob("*.safetensors")) if path.is_file()]
        if len(found) == 1:
            return {name: found[0] for name in self._names(found[0])}
        if found:
            raise InputError(
                f"{self.folder}: has {len(found)} .safetensors files and no"
                " model.safetensors.index.json that says which tensors they hold"
            )
        pickles = [
            path.name for kind in ("*.bin", "*.pt", "*.ckpt") for path in self.folder.glob(kind)
        ]
        if pickles:
            raise InputError(
                f"{self.folder}: has {pickles[0]}, a PyTorch pickle, which may execute code when it"
                " is opened. Convert it where you trust it: in Python, safetensors.torch.save_file("
                f"torch.load({pickles[0]!r}, weights_only=True), 'model.safetensors')"
            )
        raise InputError(f"{self.folder}: has no .safetensors file")

    def _names(self, path: Path) -> list[str]:
        with _opened(path) as file:
            return list(file.keys())

    def _describe(self, path: Path) -> None:
        with _opened(path) as file:
            for name in file.keys():
                part = file.get_slice(name)
                self.shapes[name] = tuple(part.get_shape())
                self.kinds[name] = part.get_dtype()


def _opened(path: Path) -> Any:
    try:
        return safe_open(path, "numpy")
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path}: not a whole safetensors file ({error}); fetch it again"
        ) from error


def fetched(where: str | Path) -> Path:
    """Returns the folder of a checkpoint: a folder here, or a name on the Hugging Face hub, whose
    files are fetched into the hub's cache. Raises InputError if there is neither."""
    path = Path(os.path.expanduser(where))
    if path.is_dir():
        return path
    if not HUB_NAME.fullmatch(str(where)):
        raise InputError(f"{where}: no such file or folder, and no name on the hub (OWNER/NAME)")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(where), allow_patterns=list(WANTED)))
    except Exception as error:  # the library, its HTTP client and the disk raise their own kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(f"{where}: cannot be fetched from the hub: {reason:.200}") from error
