"""Time and peak memory of HF -> NeMo -> HF, beside copying the files and (--nemo) NeMo's own connectors.

    python -m benchmarks.conversion --model qwen2.5-0.5b --work /tmp/conversion --nemo

Weights are random and of real shapes. Each row is one process from start to exit; peak memory is its maximum
resident set. `copy` is the floor: the same bytes through the same file system by one process that imports torch;
`copy, flush` has them on the disk at its end, as a conversion has.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "initializer_range": 0.02,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "torch_dtype": "bfloat16",
    "vocab_size": 151936,
}
MODELS = {
    "tiny": QWEN2
    | {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8}
    | {"num_key_value_heads": 2, "tie_word_embeddings": False, "vocab_size": 1024},
    "qwen2.5-0.5b": QWEN2
    | {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14}
    | {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen2.5-1.5b": QWEN2
    | {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12}
    | {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "qwen2.5-1.5b-untied": QWEN2
    | {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12}
    | {"num_key_value_heads": 2, "tie_word_embeddings": False},
}
COPY = "import os, shutil, sys, torch; shutil.copytree(sys.argv[1], sys.argv[2])"
FLUSH = "; [os.fsync(os.open(file.path, os.O_RDONLY)) for file in os.scandir(sys.argv[2])]"


def main() -> None:
    arguments = _parser().parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    hf = arguments.work / "hf"
    if not hf.exists():
        # In a process of its own: a child counts the peak of what it was forked from.
        maker = multiprocessing.get_context("spawn").Process(target=make_random_hf, args=(hf, MODELS[arguments.model]))
        maker.start()
        maker.join()
        assert maker.exitcode == 0
    num_bytes = sum(file.stat().st_size for file in hf.glob("*.safetensors"))
    limit = 1.25 * num_bytes + 2 * 2**30
    size = f"{num_bytes / 1e9:.2f} GB of bf16 weights"
    print(f"{arguments.model}: {size}; memory limit {limit / 1e9:.2f} GB; {os.cpu_count()} cores")
    convert = [sys.executable, "-m", "nemo_probsft", "convert"]
    rows = [
        ("copy", [sys.executable, "-c", COPY, hf, "copied"]),
        ("copy, flush", [sys.executable, "-c", COPY + FLUSH, hf, "flushed"]),
        ("import", [*convert, "import", hf, "nemo"]),
        ("export", [*convert, "export", "nemo", "back"]),
        ("verify", [*convert, "verify", hf, "nemo"]),
    ]
    if arguments.nemo:
        nemo = [sys.executable, "-m", "benchmarks.conversion_nemo"]
        rows += [
            ("NeMo import", [*nemo, "import", hf, "nemo_own"]),
            ("NeMo export", [*nemo, "export", "nemo_own", "nemo_back"]),
        ]
    print(f"{'':12} {'seconds':>8} {'x copy':>7} {'peak GB':>8}")
    copy_seconds = None
    for name, command in rows:
        if name != "verify":
            shutil.rmtree(arguments.work / command[-1], ignore_errors=True)
        seconds, peak, error = measure(command, arguments.work)
        copy_seconds = copy_seconds or seconds
        result = error or f"{seconds:8.1f} {seconds / copy_seconds:7.1f} {peak / 1e9:8.2f}"
        print(f"{name:12} {result}", flush=True)


def make_random_hf(directory: Path, config: dict) -> None:
    import torch
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    from conversion.families import hf_shapes, model_spec
    from conversion.safetensors_io import SHARD_BYTES, ShardedWriter

    spec = model_spec(config)
    tensors = {name: (torch.bfloat16, shape) for name, shape in hf_shapes(spec).items()}
    directory.mkdir()
    generator = torch.Generator().manual_seed(0)
    writer = ShardedWriter(directory, tensors, SHARD_BYTES)
    for name, (dtype, shape) in tensors.items():
        writer.write(name, 0, torch.empty(shape, dtype=dtype).normal_(std=0.02, generator=generator))
    writer.close()
    (directory / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (directory / "generation_config.json").write_text("{}\n")  # NeMo's importer asks for it, and for a tokenizer
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())).save_pretrained(directory)


def measure(command: list, directory: Path) -> tuple[float, int, str | None]:
    """(seconds, peak resident bytes, last line of the error or None) of one process run in `directory`."""
    repository = str(Path(__file__).resolve().parent.parent)
    environment = os.environ | {"PYTHONPATH": repository}
    start = time.perf_counter()
    process = subprocess.Popen(
        list(map(str, command)),
        cwd=directory,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines = process.stderr.read().strip().splitlines()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    error = f"failed: {lines[-1]}" if process.returncode and lines else None
    return time.perf_counter() - start, usage.ru_maxrss * 1024, error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, default="qwen2.5-0.5b")
    parser.add_argument("--work", type=Path, required=True, help="directory for the files: 5 times the model")
    parser.add_argument("--nemo", action="store_true", help="also run NeMo's own connectors (imports NeMo: slow)")
    return parser


if __name__ == "__main__":
    main()
