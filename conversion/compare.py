"""Compare two models, each a Hugging Face directory or a checkpoint of NeMo 2 or Megatron-Bridge, bit by bit."""

import json
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from conversion.checkpoint import holds_weights, model_files_directory
from conversion.convert import byte_progress, write_hf
from conversion.dtypes import dtype_name
from conversion.hf_files import model_files, read_config
from conversion.open import Model, open_checkpoint, open_model
from conversion.weights import HFWeights, Weights, num_bytes
from nemo_probsft.staging import existing_directory, system_errors_in_one_line

_BLOCK = 1 << 24  # numbers compared at a time


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same: `what` (tensor, config.json, file, logits), its name, and both sides."""

    what: str
    name: str
    a: str
    b: str


@dataclass
class Report:
    """What was compared, and every difference that was found."""

    a: Path
    b: Path
    num_tensors: int = 0
    num_bytes: int = 0
    num_files: int = 0
    logits: float | None = None  # max abs difference, fp32; None when not compared
    differences: list[Difference] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        return not self.differences

    def table(self, limit: int = 20) -> str:
        """Text for a terminal; at most `limit` differences are shown."""
        lines = [
            f"A  {self.a}",
            f"B  {self.b}",
            f"tensors  {self.num_tensors} compared, {self.num_bytes / 1e9:.3f} GB, {self._count('tensor')} differ",
            f"files    {self.num_files} compared, {self._count('config.json') + self._count('file')} differ",
        ]
        if self.logits is not None:
            lines.append(f"logits   max |A - B| = {self.logits:.3g}")
        rows = [("", "name", "A", "B"), *((d.what, d.name, d.a, d.b) for d in self.differences[:limit])]
        if self.differences:
            widths = [max(len(row[i]) for row in rows) for i in range(4)]
            lines += [
                "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
            ]
        if len(self.differences) > limit:
            lines.append(f"... and {len(self.differences) - limit} more")
        lines.append("EQUAL" if self.equal else "DIFFERENT")
        return "\n".join(lines)

    def _count(self, what: str) -> int:
        return sum(d.what == what for d in self.differences)


@system_errors_in_one_line()
def verify(a: Path, b: Path, *, base: Path | None = None, logits: bool = False, progress: bool = False) -> Report:
    """Compare tensors (bits, dtype, shape, names), config.json, tokenizer and other files; optionally fp32 logits.

    A checkpoint of a training run has no config.json: `base`, else the other side, stands in for it.
    Raises: ValueError when one of them cannot be read.
    """
    a, b = existing_directory(a), existing_directory(b)
    models = [_open(path, base, other) for path, other in ((a, b), (b, a))]
    report = Report(a, b)
    _compare_tensors(report, *(model.weights for model in models), progress)
    files = [model.files for model in models]
    if files[0] != files[1]:
        _compare_files(report, *files)
    if logits:
        _compare_logits(report, *zip((a, b), models, strict=True))
    return report


def _open(path: Path, base: Path | None, other: Path) -> Model:
    if not holds_weights(path):
        return open_model(path, None)
    return open_checkpoint(path, base, _model_files(path, base, other))


def _model_files(path: Path, base: Path | None, other: Path) -> Path:
    try:
        return model_files_directory(path)
    except ValueError:
        return model_files_directory(other, base or (None if holds_weights(other) else other))


def _compare_tensors(report: Report, a: Weights, b: Weights, progress: bool) -> None:
    for name in sorted(a.tensors.keys() ^ b.tensors.keys()):
        present = ["present" if name in side.tensors else "missing" for side in (a, b)]
        report.differences.append(Difference("tensor", name, *present))
    common = [name for name in a.tensors if name in b.tensors]
    alike = {name for name in common if a.tensors[name] == b.tensors[name]}
    differences = _differences(a, b, alike, progress)
    for name in common:
        if name not in alike:
            report.differences.append(Difference("tensor", name, _kind(a, name), _kind(b, name)))
        elif name in differences:
            report.differences.append(Difference("tensor", name, "", f"max |A - B| = {differences[name]:.3g}"))
    report.num_tensors = len(common)
    report.num_bytes = num_bytes({name: a.tensors[name] for name in alike})


def _differences(a: Weights, b: Weights, names: set[str], progress: bool) -> dict[str, float]:
    """Largest difference of each tensor whose bits are not the same; rows are read in the order of a checkpoint."""
    ordered, other = (a, b) if isinstance(b, HFWeights) else (b, a)
    differences: dict[str, float] = {}
    with byte_progress("verify", num_bytes({name: a.tensors[name] for name in names}), progress) as bar:
        for name, first, x in ordered.blocks():
            if name not in names:
                continue
            y = other.read(name, first, len(x))
            if not _same_bits(x, y):
                differences[name] = max(differences.get(name, 0.0), _max_difference(x, y))
            bar.advance(x.nbytes)
    return differences


def _kind(side: Weights, name: str) -> str:
    dtype, shape = side.tensors[name]
    return f"{dtype_name(dtype)} {list(shape)}"


def _same_bits(x: Tensor, y: Tensor) -> bool:
    bits = {2: torch.int16, 4: torch.int32}[x.element_size()]
    return torch.equal(x.view(bits), y.view(bits))


def _max_difference(x: Tensor, y: Tensor) -> float:
    blocks = zip(x.reshape(-1).split(_BLOCK), y.reshape(-1).split(_BLOCK), strict=True)
    return max(float((p.double() - q.double()).abs().max()) for p, q in blocks)


def _compare_files(report: Report, a: Path, b: Path) -> None:
    config_a, config_b = read_config(a), read_config(b)
    for key in sorted(config_a.keys() | config_b.keys()):
        sides = [json.dumps(config[key]) if key in config else "missing" for config in (config_a, config_b)]
        if sides[0] != sides[1]:
            report.differences.append(Difference("config.json", key, *sides))
    names = sorted({*model_files(a), *model_files(b)} - {Path("config.json")})
    report.num_files = len(names) + 1
    for name in names:
        sizes = [f"{(side / name).stat().st_size} bytes" if (side / name).is_file() else "missing" for side in (a, b)]
        if "missing" in sizes or (a / name).read_bytes() != (b / name).read_bytes():
            report.differences.append(Difference("file", str(name), *sizes))


def _compare_logits(report: Report, a: tuple[Path, Model], b: tuple[Path, Model]) -> None:
    """Forward both through transformers, fp32, on the same 64 random tokens."""
    logits_a, logits_b = _logits(*a), _logits(*b)
    if logits_a.shape != logits_b.shape:
        report.differences.append(Difference("logits", "shape", str(list(logits_a.shape)), str(list(logits_b.shape))))
        return
    report.logits = _max_difference(logits_a, logits_b)
    if report.logits > 0:
        report.differences.append(Difference("logits", "64 tokens", "", f"max |A - B| = {report.logits:.3g}"))


def _logits(path: Path, opened: Model) -> Tensor:
    from transformers import AutoModelForCausalLM

    with tempfile.TemporaryDirectory() as folder:
        directory = path
        if holds_weights(path):
            directory = Path(folder) / "hf"
            write_hf(opened, path, directory)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager").eval()
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(model.config.vocab_size, (1, 64), generator=generator)
        with torch.no_grad():
            return model(tokens).logits
