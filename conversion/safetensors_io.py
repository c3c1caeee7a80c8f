"""Read and write Hugging Face weight files tensor by tensor, without mapping or holding a whole file.

The format (https://huggingface.co/docs/safetensors): u64 header length, JSON header with dtype, shape and
byte range per tensor, then the data. Files are laid out as `save_pretrained` lays them out, byte for byte.
The reader is not `safetensors.safe_open`: that maps the file, and resident memory then grows with the model (peak of an
import of 1 GB of weights: 1.33 GB, against 0.59).
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from conversion.dtypes import Tensors
from nemo_probsft.staging import start_flushing

_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 100 << 20  # the limit of the reference implementation
SHARD_BYTES = 5 * 10**9
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: file, absolute byte offset, dtype, shape."""

    file: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize


def read_index(directory: Path) -> dict[str, TensorInfo]:
    """All tensors of a model directory, by name, from the files that transformers would load
    (`_get_resolved_checkpoint_files` in modeling_utils.py, 4 and 5): model.safetensors, else what the index names.

    Raises: ValueError if there are no weights, if a shard is missing, truncated or malformed, or if the index and
    the files disagree.
    """
    index, single = directory / INDEX, directory / SINGLE
    if single.is_file():
        return read_header(single)
    if not index.is_file():
        raise ValueError(f"{directory}: has neither {SINGLE} nor {INDEX}; name the directory of a Hugging Face model")
    weight_map = _weight_map(index)
    tensors: dict[str, TensorInfo] = {}
    for name in sorted(set(weight_map.values())):
        if not (directory / name).exists():
            raise ValueError(f"{directory / name}: missing, but {INDEX} names it; download the model again")
        tensors |= read_header(directory / name)
    listed = {name: info.file.name for name, info in tensors.items()}
    wrong = sorted(name for name in listed.keys() | weight_map.keys() if listed.get(name) != weight_map.get(name))
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{index}: {len(wrong)} entries disagree with the shards, e.g. {name}: "
            f"the index says {weight_map.get(name)}, the files say {listed.get(name)}; download the model again"
        )
    return tensors


def indexed_files(index: Path) -> set[str]:
    """Names of the files that an index names. Raises: ValueError if it is none."""
    return set(_weight_map(index).values())


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Tensors of one safetensors file. Raises: ValueError if the header or the file size is wrong."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(_MAX_HEADER, size - 8):
            problem = f"truncated or not a safetensors file ({size} bytes, header of {length})"
            raise ValueError(f"{file}: {problem}; download it again")
        try:
            header = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            tensors = {name: _info(file, 8 + length, name, entry) for name, entry in header.items()}
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file}: malformed safetensors header ({error}); download the file again") from error
    end = 8 + length
    for name, info in sorted(tensors.items(), key=lambda item: item[1].offset):
        if info.offset != end:
            problem = f"tensor {name} starts at byte {info.offset}, not at {end}"
            raise ValueError(f"{file}: {problem}; the header is damaged, download the file again")
        end += info.num_bytes
    if end != size:
        problem = f"{size} bytes, but its header describes {end}"
        raise ValueError(f"{file}: {problem}; the file is truncated or damaged, download it again")
    return tensors


def read_rows(info: TensorInfo, first: int, out: Tensor) -> None:
    """Fill `out` (contiguous, of the tensor's dtype) with its rows from `first` on."""
    with info.file.open("rb", buffering=0) as stream:
        stream.seek(info.offset + first * info.row_bytes)
        view = _bytes(out)
        while len(view):
            num_bytes = stream.readinto(view[: 1 << 30])
            if not num_bytes:
                raise ValueError(
                    f"{info.file}: ends inside a tensor; it changed while it was being read, run the conversion again"
                )
            view = view[num_bytes:]


class ShardedWriter:
    """Files for tensors whose names, dtypes and shapes are known beforehand; rows may come in any order."""

    def __init__(self, directory: Path, tensors: Tensors, shard_bytes: int):
        """`tensors` in the order of the model's state dict, which decides the shards."""
        self._places: dict[str, TensorInfo] = {}
        shards = _split_into_shards(tensors, shard_bytes)
        names = [SINGLE]
        if len(shards) > 1:
            names = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
        for name, shard in zip(names, shards, strict=True):
            self._places |= _write_header(directory / name, {key: tensors[key] for key in shard})
        if len(shards) > 1:
            _write_index(directory / INDEX, tensors, self._places)
        self._streams = {name: (directory / name).open("r+b", buffering=0) for name in names}
        self._missing = {name: shape[0] for name, (_, shape) in tensors.items()}

    def write(self, name: str, first: int, rows: Tensor) -> None:
        """Store `rows` as those of tensor `name` from `first` on."""
        place = self._places[name]
        assert (rows.dtype, tuple(rows.shape[1:])) == (place.dtype, place.shape[1:]), name
        stream = self._streams[place.file.name]
        start = stream.seek(place.offset + first * place.row_bytes)
        view = _bytes(rows.contiguous())
        while len(view):
            view = view[stream.write(view[: 1 << 30]) :]
        start_flushing(stream, start, stream.tell())
        self._missing[name] -= len(rows)

    def close(self) -> None:
        assert not any(self._missing.values()), self._missing
        for stream in self._streams.values():
            stream.close()


def state_dict_order(tensors: Tensors) -> Tensors:
    """The order of transformers' state dict, which decides what goes into which shard: a bias follows its weight."""
    ordered = {}
    for name in tensors:
        ordered[name] = tensors[name]
        bias = name.removesuffix("weight") + "bias"
        if bias in tensors:
            ordered[bias] = tensors[bias]
    return ordered


def _bytes(tensor: Tensor) -> memoryview:
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = set(weight_map.values())
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: not a weight index ({error!r}); download it again") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            problem = f"{name!r} is not the name of a safetensors file in the same directory"
            raise ValueError(f"{index}: {problem}; download the model again")
    return weight_map


def _info(file: Path, base: int, name: str, entry: dict) -> TensorInfo:
    if entry["dtype"] not in _DTYPES:
        problem = f"tensor {name} has dtype {entry['dtype']}, but only {', '.join(_DTYPES)} are supported"
        raise ValueError(f"{file}: {problem}; use another model")
    shape = entry["shape"]
    if not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError(f"{file}: {shape} is no shape of a tensor ({name}); download the file again")
    start, end = entry["data_offsets"]
    info = TensorInfo(file, base + start, _DTYPES[entry["dtype"]], tuple(shape))
    if end - start != info.num_bytes:
        problem = f"tensor {name} spans {end - start} bytes, its shape {shape} needs {info.num_bytes}"
        raise ValueError(f"{file}: {problem}; the header is damaged, download the file again")
    return info


def _split_into_shards(tensors: Tensors, shard_bytes: int) -> list[list[str]]:
    """Greedy in the given order, as `huggingface_hub.split_torch_state_dict_into_shards`."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, (dtype, shape) in tensors.items():
        num_bytes = math.prod(shape) * dtype.itemsize
        if shards[-1] and filled + num_bytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += num_bytes
    return shards


def _write_header(file: Path, tensors: Tensors) -> dict[str, TensorInfo]:
    """Write the header, reserve the data, and say where each tensor goes."""
    order = sorted(tensors, key=lambda name: (-tensors[name][0].itemsize, name))  # as the reference implementation
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    places, end = {}, 0
    for name in order:
        dtype, shape = tensors[name]
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
        places[name] = start
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    base = 8 + len(text)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(base + end)
    return {name: TensorInfo(file, base + start, *tensors[name]) for name, start in places.items()}


def _write_index(file: Path, tensors: dict, places: dict[str, TensorInfo]) -> None:
    content = {
        "metadata": {
            "total_parameters": sum(math.prod(shape) for _, shape in tensors.values()),
            "total_size": sum(info.num_bytes for info in places.values()),
        },
        "weight_map": {name: places[name].file.name for name in tensors},
    }
    file.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
