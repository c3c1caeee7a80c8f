"""Read and write Megatron-Core's `torch_dist` checkpoints chunk by chunk, without process groups or a model.

A checkpoint is torch.distributed.checkpoint's layout: `.metadata` (a pickled index), `*.distcp` files of
concatenated `torch.save` payloads, and Megatron's `common.pt` and `metadata.json`. Tensors are stored whole
(global), whatever the parallel sizes of the run were; those of the layers are stacked along dimension 0.

Two parts of it are private in torch: `_StorageInfo`, whose name is in every index, and `_create_file_view`. torch
2.13.0 has both; tests/unit/test_torch_private.py says so when another version does not.
"""

import json
import pickle
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.utils import _create_file_view

from nemo_probsft.files import first_line
from nemo_probsft.staging import start_flushing

FILE_BYTES = 4 << 30
_OPTIMIZER = re.compile(r"(chained_\d+\.)?optimizer\.")


class TorchDistWriter:
    """Write a checkpoint into an existing empty directory."""

    def __init__(self, directory: Path):
        self._directory = directory
        self._entries: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
        self._storage: dict[MetadataIndex, _StorageInfo] = {}
        self._num_files = 0
        self._stream = self._next_file()

    def add_rows(
        self, key: str, rows: Tensor, first: int, global_shape: tuple[int, ...], layer: int | None = None
    ) -> None:
        """Store `rows` as one chunk: the rows of `key` from `first` on, or those of its slice `layer`."""
        entry = self._entries.setdefault(
            key, TensorStorageMetadata(TensorProperties(dtype=rows.dtype), torch.Size(global_shape), [])
        )
        assert entry.properties.dtype == rows.dtype, key
        offset = (first, *[0] * (rows.dim() - 1))
        if layer is not None:
            rows, offset = rows[None], (layer, *offset)
        if rows.untyped_storage().nbytes() != rows.nbytes:
            rows = rows.clone()  # torch.save writes the whole storage behind a view
        index = MetadataIndex(key, offset, len(entry.chunks))
        entry.chunks.append(ChunkStorageMetadata(torch.Size(offset), rows.shape))
        self._storage[index] = self._save(rows)
        if self._stream.tell() > FILE_BYTES:
            self._stream.close()
            self._stream = self._next_file()

    def add_object(self, key: str, value: Any) -> None:
        """Store one shard of a Megatron `ShardedObject`; `key` ends with its `/shard_{offset}_{shape}`."""
        self._entries[key] = BytesStorageMetadata()
        self._storage[MetadataIndex(key)] = self._save([value])  # a list: Megatron's form of the local shards

    def close(self, common: dict) -> None:
        """Write the index. `common`: the unsharded state that Megatron loads on every rank."""
        self._stream.close()
        metadata = Metadata(self._entries, planner_data={}, storage_data=self._storage, storage_meta=StorageMeta())
        (self._directory / ".metadata").write_bytes(pickle.dumps(metadata))
        with (self._directory / "common.pt").open("wb") as stream:
            save(common, stream)
        formats = {"sharded_backend": "torch_dist", "sharded_backend_version": 1}
        formats |= {"common_backend": "torch", "common_backend_version": 1}
        (self._directory / "metadata.json").write_text(json.dumps(formats), encoding="utf-8")

    def _save(self, value: Any) -> _StorageInfo:
        start = self._stream.tell()
        save(value, self._stream)
        end = self._stream.tell()
        start_flushing(self._stream, start, end)
        return _StorageInfo(Path(self._stream.name).name, start, end - start)

    def _next_file(self) -> BinaryIO:
        self._num_files += 1
        return (self._directory / f"__0_{self._num_files - 1}.distcp").open("wb")


class TorchDistReader:
    """The tensors of a checkpoint, by Megatron key without the `module.` prefixes of the training wrappers."""

    def __init__(self, directory: Path):
        """Raises: ValueError if the directory is not a complete torch_dist checkpoint of a model."""
        self.directory = directory
        _check_format(directory)
        metadata = _load_metadata(directory / ".metadata")
        self._storage = metadata.storage_data
        entries = metadata.state_dict_metadata
        tensors = {key for key, entry in entries.items() if isinstance(entry, TensorStorageMetadata)}
        self._stored_key = {_strip(key): key for key in tensors if not _OPTIMIZER.match(key)}
        self._tensors: dict[str, TensorStorageMetadata] = {key: entries[own] for key, own in self._stored_key.items()}
        self._recent: dict[tuple, Tensor] = {}
        self._check_files()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def shape(self, key: str) -> tuple[int, ...]:
        return tuple(self._tensors[key].size)

    def dtype(self, key: str) -> torch.dtype:
        return self._tensors[key].properties.dtype

    def row_blocks(self, key: str, layer: int | None, num_rows: int) -> list[tuple[int, int]]:
        """(first, count) of blocks that cover the first `num_rows` rows, cut where the stored chunks end."""
        axis = 0 if layer is None else 1
        chunks = [
            c for c in self._tensors[key].chunks if layer is None or c.offsets[0] <= layer < c.offsets[0] + c.sizes[0]
        ]
        edges = {0, num_rows}
        for chunk in chunks:
            first = chunk.offsets[axis]
            edges |= {min(first, num_rows), min(first + chunk.sizes[axis], num_rows)}
        return [(low, high - low) for low, high in pairwise(sorted(edges))]

    def read(self, key: str, layer: int | None, first: int, count: int) -> Tensor:
        """Rows [first, first + count) of the tensor, or of its slice `layer` along dimension 0.

        Cost: memory of the result plus the stored chunks that hold it. Raises: ValueError if none does.
        """
        entry = self._tensors[key]
        start, size = [0] * len(entry.size), list(entry.size)
        if layer is not None:
            start[0], size[0] = layer, 1
        axis = 0 if layer is None else 1
        start[axis], size[axis] = first, count
        found = [(chunk, overlap) for chunk in entry.chunks if (overlap := _overlap(start, size, chunk))]
        wanted = {(key, tuple(chunk.offsets)) for chunk, _ in found}
        self._recent = {place: tensor for place, tensor in self._recent.items() if place in wanted}
        if len(found) == 1 and (whole := self._chunk(key, found[0][0])[found[0][1][1]]).shape == torch.Size(size):
            return whole if layer is None else whole[0]
        result = torch.empty(size, dtype=entry.properties.dtype)
        filled = 0
        for chunk, (to, source) in found:
            part = self._chunk(key, chunk)[source]
            result[to] = part
            filled += part.numel()
        if filled != result.numel():
            problem = f"the stored chunks of {key} hold {filled} of {result.numel()} numbers"
            raise ValueError(f"{self.directory}: {problem}; copy the checkpoint again")
        return result if layer is None else result[0]

    def _chunk(self, key: str, chunk: ChunkStorageMetadata) -> Tensor:
        """The chunks of the last call of `read` are kept: calls for neighbouring rows come in a row."""
        place = key, tuple(chunk.offsets)
        if place not in self._recent:
            self._recent[place] = self._load_chunk(key, chunk)
        return self._recent[place]

    def filled_extra_state(self) -> str | None:
        """The first `_extra_state` that is not empty: Transformer Engine unpickles those when it loads the model."""
        for index, info in self._storage.items():
            if "._extra_state" in index.fqn:
                states = self._load(info, index.fqn)
                if not all(state is None or (isinstance(state, Tensor) and not state.numel()) for state in states):
                    return index.fqn
        return None

    def _load(self, info: _StorageInfo, key: str) -> Any:
        file = self.directory / info.relative_path
        with file.open("rb", buffering=0) as stream:
            # A view of the file: from bytes in memory everything would be copied twice.
            view = _create_file_view(stream, info.offset, info.length)
            try:
                return torch.load(view, map_location="cpu", weights_only=True)
            except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
                raise ValueError(
                    f"{file}: {key} is damaged ({first_line(error)}); copy the checkpoint again"
                ) from error

    def _load_chunk(self, key: str, chunk: ChunkStorageMetadata) -> Tensor:
        info = self._storage[MetadataIndex(self._stored_key[key], chunk.offsets)]
        file = self.directory / info.relative_path
        tensor = self._load(info, key)
        if not isinstance(tensor, Tensor) or (tensor.shape, tensor.dtype) != (chunk.sizes, self.dtype(key)):
            problem = f"a chunk of {key} is not the tensor that the index describes"
            raise ValueError(f"{file}: {problem}; copy the checkpoint again")
        return tensor

    def _check_files(self) -> None:
        needed: dict[str, int] = {}
        for info in self._storage.values():
            if Path(info.relative_path).name != info.relative_path:
                problem = f"names {info.relative_path!r}, which lies outside of the checkpoint"
                raise ValueError(f"{self.directory}/.metadata: {problem}; do not use this checkpoint")
            needed[info.relative_path] = max(needed.get(info.relative_path, 0), info.offset + info.length)
        for name, num_bytes in needed.items():
            file = self.directory / name
            if not file.exists():
                raise ValueError(f"{file}: missing; the checkpoint is incomplete, copy it again")
            if (size := file.stat().st_size) < num_bytes:
                problem = f"{size} bytes, but the index needs {num_bytes}"
                raise ValueError(f"{file}: {problem}; it is truncated, copy it again")


def global_shape(shape: tuple[int, ...], num_layers: int | None) -> tuple[int, ...]:
    """Shape in the checkpoint of a tensor whose layers are stacked (num_layers) or that exists once (None)."""
    return shape if num_layers is None else (num_layers, *shape)


def _strip(key: str) -> str:
    """`key` without the prefixes of the training wrappers."""
    while key.startswith("module."):
        key = key.removeprefix("module.")
    return key


def save(value: Any, stream: BinaryIO) -> None:
    """`torch.save` without checksums: `torch.load` ignores them, and they take half of the time.

    Raises: OSError of the stream, which torch hides behind a RuntimeError of its own.
    """
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(value, stream)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from error
        raise
    finally:
        torch.serialization.set_crc32_options(before)


def _overlap(start: list[int], size: list[int], chunk: ChunkStorageMetadata) -> tuple[tuple, tuple] | None:
    """Slices into the wanted box and into the chunk where they intersect; None where they do not."""
    to, source = [], []
    for first, length, chunk_first, chunk_length in zip(start, size, chunk.offsets, chunk.sizes, strict=True):
        low, high = max(first, chunk_first), min(first + length, chunk_first + chunk_length)
        if low >= high:
            return None
        to.append(slice(low - first, high - first))
        source.append(slice(low - chunk_first, high - chunk_first))
    return tuple(to), tuple(source)


def _check_format(directory: Path) -> None:
    marker = directory / "metadata.json"
    if not marker.exists() or not (directory / ".metadata").exists():
        problem = "metadata.json or .metadata is missing"
        raise ValueError(f"{directory}: {problem}; this is not a complete torch_dist checkpoint")
    try:
        backend = json.loads(marker.read_text(encoding="utf-8"))["sharded_backend"]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{marker}: not Megatron's description of a checkpoint ({error!r}); copy the checkpoint again"
        ) from error
    if backend != "torch_dist":
        raise ValueError(f"{marker}: checkpoint format {backend!r}; save the checkpoint again as torch_dist")


class _Ignored:
    """Stands for bookkeeping classes (save plans, Megatron's caches) that pickle with the index."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Ignored":
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


class _MegatronMetadata(Metadata):
    pass


_INDEX_CLASSES = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "_MEM_FORMAT_ENCODING",
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
    },
    "collections": {"OrderedDict"},
    "pathlib": {"PosixPath"},
}


class _IndexUnpickler(pickle.Unpickler):
    """The index is a pickle: only its own data classes are built, so a foreign one cannot run code."""

    def find_class(self, module: str, name: str) -> Any:
        if name in _INDEX_CLASSES.get(module, ()) or (
            module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
        ):
            return super().find_class(module, name)
        if (module, name) == ("megatron.core.dist_checkpointing.strategies.torch", "MCoreMetadata"):
            return _MegatronMetadata
        if module.startswith(("torch.distributed.checkpoint.", "megatron.core.dist_checkpointing.")):
            return _Ignored
        raise pickle.UnpicklingError(f"{module}.{name} does not belong in a checkpoint index")


def _load_metadata(file: Path) -> Metadata:
    try:
        with file.open("rb") as stream:
            metadata = _IndexUnpickler(stream).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, ValueError, TypeError, IndexError) as error:
        raise ValueError(
            f"{file}: damaged or foreign checkpoint index ({first_line(error)}); copy the checkpoint again"
        ) from error
    if not isinstance(metadata, Metadata):
        raise ValueError(f"{file}: not a checkpoint index but a {type(metadata).__name__}; copy the checkpoint again")
    return metadata
