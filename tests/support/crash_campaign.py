"""`python -m tests.support.crash_campaign FOLDER --kills 20 [--engine bridge]`: a run killed again and again, against
one that is not.

`kill -9` hits the launcher or one rank: at a random time of the start, at a random step, or while a checkpoint is being
written or removed. After every kill no process is left, and the last checkpoint that counts as complete is readable to
its last tensor. The killed run ends with the same metrics.jsonl, byte for byte. docs/parity.md has a campaign's
result, `tests/engines/test_crash.py` and `test_bridge_crash.py` run short ones.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import yaml

from conversion.checkpoint import is_nemo, kind_of, last_checkpoint, step_of, weights_directory
from conversion.torch_dist import TorchDistReader
from nemo_probsft.demo_data import VOCAB_SIZE, write_tokenizer
from nemo_probsft.run.log import read_metrics, read_validations
from tests.support.engine import BRIDGE_PYTHON, environment

MOMENTS = ("start", "step", "checkpoint")
PATIENCE_S = 600


def write_recipe(
    folder: Path, name: str, num_steps: int, engine: str = "nemo", validates: bool = False, **changes
) -> Path:
    """A run of two ranks on a tiny model; the last checkpoint does not fall on `every_steps`.

    validates: also on held-out rows, keeping the best checkpoint.
    """
    if not (folder / "model").exists():
        write_tokenizer(folder / "model")
        _write_model(folder / "model")
        rows = [
            {"prompt": f"{a}+{b}=", "response": f"{a + b}, I say" * (1 + a % 3)} for a in range(8) for b in range(8)
        ]
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (folder / "held-out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[::13]), encoding="utf-8")
    recipe = {
        "engine": engine,
        "run_dir": str(folder / name),
        "model": {"path": str(folder / "model")},
        "data": {
            "train": str(folder / "train.jsonl"),
            "max_length": 64,
            "global_batch_size": 8,
            "micro_batch_size": 2,
        },
        "objective": "adaptive-by-label-0.002-0.01-0.5-10",  # whose state is a part of the checkpoint
        "parallel": {"tensor_model_parallel_size": 2},
        "optim": {"lr": 1e-3},
        "trainer": {"devices": 2, "max_steps": num_steps, "precision": "fp32"},
        "checkpoint": {"every_steps": 3},
        **changes,
    }
    if validates:
        recipe["data"] |= {"validation": str(folder / "held-out.jsonl")}
        recipe["checkpoint"] |= {"keep_best": "p"}
        recipe["validate"] = {"every_steps": 1}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return path


def _write_model(directory: Path) -> None:
    """Four layers, so that a run can go on with two pipeline stages."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(3)
    shape = {"vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "eos_token_id": 1, "bos_token_id": None}
    Qwen2ForCausalLM(Qwen2Config(**shape, **heads, tie_word_embeddings=False)).float().save_pretrained(directory)


def start(recipe: Path, *overrides: str, command: str = "train") -> subprocess.Popen:
    """In the environment of the recipe's engine. Its output goes to a file: a pipe would stay open as long as any
    process that inherited it."""
    engine = yaml.safe_load(recipe.read_text(encoding="utf-8")).get("engine", "nemo")
    python = {"nemo": sys.executable, "bridge": BRIDGE_PYTHON}[engine]
    # The launcher's own number of threads, unless the tests have set one: another may change the last bit of a sum.
    surroundings = environment(python) | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "")}
    surroundings = {name: value for name, value in surroundings.items() if value}
    line = [python, "-m", "nemo_probsft", command, str(recipe), *overrides]
    with recipe.with_suffix(".out").open("w") as output:
        return subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT, env=surroundings)


def finish(recipe: Path, *overrides: str, code: int = 0, command: str = "train") -> str:
    """Run to the end, which is to be the exit code. Returns what was printed."""
    process = start(recipe, *overrides, command=command)
    _wait(process, recipe)
    assert process.returncode == code, _output(recipe)
    return recipe.with_suffix(".out").read_text()


def _wait(process: subprocess.Popen, recipe: Path) -> None:
    try:
        process.wait(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        launcher = psutil.Process(process.pid)
        left = [(one.pid, one.status(), _cmdline(one)) for one in [launcher, *launcher.children(recursive=True)]]
        raise AssertionError(f"not over after {PATIENCE_S} s: {left}; {_output(recipe)}") from None


def _output(recipe: Path) -> str:
    return recipe.with_suffix(".out").read_text()[-3000:]


def run_and_kill(recipe: Path, run_dir: Path, moment: str, chance: random.Random) -> str:
    """Start or continue the run and kill it at the moment. Says what was hit; "" when the run ended before."""
    process = start(recipe)
    if not _wait_for(moment, run_dir, process, chance):
        assert process.wait() == 0, _output(recipe)
        return ""
    family = psutil.Process(process.pid).children(recursive=True)
    ranks = [child for child in family if _is_rank(child)]
    victim = chance.choice(["launcher", "rank"]) if ranks else "launcher"
    (chance.choice(ranks) if victim == "rank" else process).kill()
    _wait(process, recipe)
    if process.returncode == 0:
        return ""
    _, alive = psutil.wait_procs(family, timeout=60)  # Megatron's checkpoint writers, and their server, among them
    assert not alive, f"left over after the {victim} was killed: {[_cmdline(child) for child in alive]}"
    return victim


def check_directory(run_dir: Path) -> int:
    """What lies there after a kill can be trusted. Returns the step of the last complete checkpoint, 0 without one."""
    steps = [row["step"] for row in read_metrics(run_dir)]
    assert steps == list(range(1, len(steps) + 1)), steps
    best = run_dir / "best"
    if best.is_symlink():
        _read(best)
    last = last_checkpoint(run_dir / "checkpoints")
    if last is None:
        return 0
    _read(last)
    return step_of(last)


def best_step(run_dir: Path) -> int:
    """The step of the best checkpoint, which is the one that the held-out rows say."""
    saved = {row["step"]: row["validation_p"] for row in read_validations(run_dir) if row["step"] % 3 == 0}
    last = read_validations(run_dir)[-1]
    saved = {step: p for step, p in saved.items() if step} | {last["step"]: last["validation_p"]}
    found = step_of((run_dir / "best").resolve())
    assert found == max(saved, key=lambda step: (saved[step], -step))
    return found


def _read(checkpoint: Path) -> None:
    """To its last tensor."""
    reader = TorchDistReader(weights_directory(checkpoint))
    for key in reader:
        reader.read(key, None, 0, reader.shape(key)[0])
    described = "context/model.yaml" if is_nemo(checkpoint) else "hf/config.json"
    assert (checkpoint / described).stat().st_size


def _wait_for(moment: str, run_dir: Path, process: subprocess.Popen, chance: random.Random) -> bool:
    """False when the process ended first."""
    until_step = len(read_metrics(run_dir)) + chance.randint(1, 4)
    until_time = time.monotonic() + chance.uniform(0, 15)
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None:
        assert time.monotonic() < deadline, f"the run neither ended nor came to: {moment}"
        if moment == "start" and time.monotonic() > until_time:
            return True
        if moment == "step" and len(read_metrics(run_dir)) >= until_step:
            return True
        if moment == "checkpoint" and _saves(run_dir / "checkpoints"):
            time.sleep(chance.uniform(0, 0.3))
            return process.poll() is None
        time.sleep(0.005)
    return False


def _saves(directory: Path) -> bool:
    """NeMo marks what it writes or removes; of Bridge's, one that is not complete is being written."""
    marked = list(directory.glob("*-unfinished"))
    return bool(marked or [path for path in directory.glob("iter_*") if kind_of(path) is None])


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _is_rank(process: psutil.Process) -> bool:
    return _trains(process) and not _trains(_parent(process))


def _parent(process: psutil.Process) -> psutil.Process | None:
    try:
        return process.parent()
    except psutil.Error:
        return None


def _trains(process: psutil.Process | None) -> bool:
    try:
        return process is not None and "RANK" in process.environ() and "nemo_probsft.rank" in process.cmdline()
    except psutil.Error:  # it has just ended
        return False


def campaign(folder: Path, kills: int, num_steps: int, seed: int, engine: str) -> list[dict]:
    """Raises AssertionError when anything was lost. Returns what was done: one entry a kill."""
    chance = random.Random(seed)
    killed = write_recipe(folder, "killed", num_steps, engine, validates=True)
    done = []
    moments = [MOMENTS[i % len(MOMENTS)] for i in range(kills)]
    chance.shuffle(moments)
    for moment in moments:
        victim = run_and_kill(killed, folder / "killed", moment, chance)
        if not victim:
            break
        steps = len(read_metrics(folder / "killed"))
        done.append(
            {"moment": moment, "killed": victim, "at_step": steps, "checkpoint": check_directory(folder / "killed")}
        )
        print(json.dumps(done[-1]), flush=True)
    finish(killed)
    check_directory(folder / "killed")
    assert (folder / "killed" / "metrics.jsonl").read_bytes() == (folder / "whole" / "metrics.jsonl").read_bytes()
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", choices=["nemo", "bridge"], default="nemo")
    options = parser.parse_args()
    options.folder.mkdir(parents=True)
    finish(write_recipe(options.folder, "whole", options.steps, options.engine, validates=True))
    done = campaign(options.folder, options.kills, options.steps, options.seed, options.engine)
    print(
        f"{len(done)} kills, {options.steps} steps, seed {options.seed}: metrics.jsonl is that of the uninterrupted run"
    )


if __name__ == "__main__":
    main()
