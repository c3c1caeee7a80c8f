"""`nemo-probsft launch`: what is submitted, what is refused, and real runs on this machine and on a real Slurm."""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from nemo_probsft.__main__ import main
from nemo_probsft.command_line import Parser, options_of, parse
from nemo_probsft.launch import command, submit
from nemo_probsft.launch.submission import Options
from tests.support import slurm
from tests.support.crash_campaign import write_recipe

SLURM = ("--executor", "slurm", "--account", "lab", "--gpus-per-node", "0")
FOREIGN = ("SLURM_", "SBATCH_", "NEMORUN_")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """tiny.yaml beside its model and data, with relative paths, so that a job must start where the user stands."""
    directory = tmp_path_factory.mktemp("launch")
    path = write_recipe(directory, "tiny", num_steps=2)
    recipe = yaml.safe_load(path.read_text()) | {"run_dir": "tiny", "model": {"path": "model"}, "objective": "p"}
    recipe["data"]["train"] = "train.jsonl"
    path.write_text(yaml.safe_dump(recipe))
    return directory


@pytest.fixture
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def printed(capsys, *arguments: str) -> str:
    """The dry run of `launch tiny.yaml ARGUMENTS`, which leaves everything as it was."""
    from nemo_run.config import get_nemorun_home

    home = Path(get_nemorun_home())
    before = sorted(Path().rglob("*")), home.exists() and sorted(home.rglob("*"))
    assert main(["launch", "tiny.yaml", *arguments, "--dry-run"]) == 0
    assert (sorted(Path().rglob("*")), home.exists() and sorted(home.rglob("*"))) == before
    return capsys.readouterr().out


def words(script: str, first: str) -> list[str]:
    """The command of the one line that starts with `first`, as bash takes it apart."""
    (line,) = [line for line in script.splitlines() if line.startswith(first)]
    return shlex.split(line)


def flags(script: str) -> set[str]:
    return {line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")}


def correct_bash(script: str) -> str:
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    return script


def test_one_node_runs_the_command_that_a_person_types(here, capsys):
    script = correct_bash(printed(capsys, "optim.lr=2e-3", "run_dir=a b", *SLURM, "--time", "1:00:00"))
    assert words(script, "srun")[-5:] == ["nemo-probsft", "train", "tiny.yaml", "optim.lr=2e-3", "run_dir=a b"]
    assert {"--account=lab", "--time=1:00:00", "--nodes=1", "--ntasks-per-node=1", "--job-name=tiny"} <= flags(script)
    assert not any(flag.startswith(("--gpus", "--array", "--signal")) for flag in flags(script))
    assert "TORCHX_MAX_RETRIES=0" in script


def test_several_nodes_meet_under_torchrun(here, capsys):
    script = correct_bash(printed(capsys, *SLURM[:4], "--nodes", "4"))
    command = words(script, "srun")
    assert command[command.index("torchrun") :][:3] == ["torchrun", "--rdzv-backend", "c10d"]
    assert command[command.index("--rdzv-endpoint") + 1] == "$head_node_ip:29500"
    assert command[command.index("--nnodes") + 1] == "4"
    assert command[command.index("--nproc-per-node") + 1] == "2"  # the recipe's trainer.devices
    assert command[command.index("--no-python") + 1 :] == ["nemo-probsft", "train", "tiny.yaml", "trainer.num_nodes=4"]
    assert {"--nodes=4", "--ntasks-per-node=1", "--gpus-per-node=2"} <= flags(script)


def test_container_mounts_and_variables(here, capsys):
    options = ("--container-image", "registry/nemo:1", "--mount", "/data:/data", "--env", "http_proxy=a b")
    script = correct_bash(printed(capsys, *SLURM, *options))
    command = words(script, "srun")
    assert command[command.index("--container-image") + 1] == "registry/nemo:1"
    assert {f"{here}:{here}", "/data:/data"} <= set(command[command.index("--container-mounts") + 1].split(","))
    assert command[command.index("--container-env") + 1] == "http_proxy"
    assert "export http_proxy='a b'" in script.splitlines()
    assert "PATH" not in script  # the image has its own


def test_requeue_ends_before_the_limit_and_puts_the_job_back(here, capsys):
    script = correct_bash(printed(capsys, *SLURM, "--requeue", "3", "--sbatch", "qos=high", "--sbatch", "exclusive"))
    assert {"--signal=TERM@120", "--qos=high", "--exclusive", "--open-mode=append"} <= flags(script)
    assert "TORCHX_MAX_RETRIES=3" in script
    assert 'scontrol requeue "$SLURM_JOB_ID"' in script


def test_a_sweep_is_one_array(here, capsys):
    arguments = ("--objectives", "original,p", "--seeds", "0,1", "run_dir=sweep", "--name", "both")
    script = correct_bash(printed(capsys, *arguments, *SLURM))
    assert {"--array=0-3", "--job-name=both"} <= flags(script)
    cells = [words(script, f"{number})")[2:-1] for number in range(4)]
    assert cells == [
        ["nemo-probsft", "train", "tiny.yaml", f"objective={objective}", f"trainer.seed={seed}", f"run_dir={run_dir}"]
        for objective in ("original", "p")
        for seed in (0, 1)
        for run_dir in [f"sweep/{objective}-seed{seed}"]
    ]


def test_on_this_machine_a_sweep_is_one_command_after_the_other(here, capsys):
    commands = printed(capsys, "--executor", "local", "--seeds", "0,1").split("---\n")
    assert [shlex.split(command)[-4:] for command in commands] == [
        ["train", "tiny.yaml", f"trainer.seed={seed}", f"run_dir=tiny/seed{seed}"] for seed in (0, 1)
    ]


def test_kubeflow_prints_a_manifest_or_names_the_package(here, capsys, monkeypatch, tmp_path):
    arguments = ("--executor", "kubeflow", "--container-image", "registry/nemo:1", "--nodes", "4")
    arguments += ("--mount", "claim:/data", "--env", "a=b")
    if importlib.util.find_spec("kubernetes") is None:
        assert main(["launch", "tiny.yaml", *arguments, "--dry-run"]) == 2
        assert "pip install 'kubernetes<32'" in capsys.readouterr().err
        return
    cluster = {"name": "c", "cluster": {"server": "https://localhost:1"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "c"}}
    configuration = {"clusters": [cluster], "contexts": [context], "users": [{"name": "c", "user": {}}]}
    (tmp_path / "config").write_text(yaml.safe_dump(configuration | {"current-context": "c"}))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "config"))
    job = yaml.safe_load(printed(capsys, *arguments))
    trainer = job["spec"]["trainer"]
    assert (job["kind"], trainer["image"], trainer["numNodes"], trainer["numProcPerNode"]) == (
        *("TrainJob", "registry/nemo:1", 4, 2),
    )
    assert trainer["command"] == [
        *("torchrun", "--no-python", "nemo-probsft", "train", "tiny.yaml", "trainer.num_nodes=4"),
    ]
    assert trainer["env"] == [{"name": "a", "value": "b"}]
    assert trainer["resourcesPerNode"]["limits"] == {"nvidia.com/gpu": "2"}
    (override,) = job["spec"]["podTemplateOverrides"]
    assert override["spec"]["volumes"] == [{"name": "mount-0", "persistentVolumeClaim": {"claimName": "claim"}}]
    assert override["spec"]["containers"][0]["volumeMounts"] == [{"name": "mount-0", "mountPath": "/data"}]


IMAGE = ("--container-image", "registry/nemo:1")
BAD = {
    "executor": (["--executor", "pbs"], "--executor: invalid choice: 'pbs' (choose from "),
    "account": (["--executor", "slurm"], "--account"),
    "nodes": ([*SLURM, "trainer.num_nodes=2", "--nodes", "4"], "trainer.num_nodes: 2 contradicts --nodes 4"),
    "nodes here": (["--executor", "local", "--nodes", "2"], "--executor local is this machine"),
    "mount": ([*SLURM, *IMAGE, "--mount", "/data"], "--mount: /data is not"),
    "relative mount": ([*SLURM, *IMAGE, "--mount", "/data:data"], "--mount: /data:data is not"),
    "mount without image": ([*SLURM, "--mount", "/data:/data"], "no effect without --container-image"),
    "bucket": ([*SLURM, *IMAGE, "--mount", "s3://bucket:/data"], "--mount: s3://bucket:/data is not"),
    "image here": (["--executor", "local", *IMAGE], "--container-image has no effect with --executor local"),
    "requeue": (["--executor", "local", "--requeue"], "--requeue has no effect"),
    "env": ([*SLURM, "--env", "1A=2"], "--env: 1A=2 is not NAME=VALUE"),
    "name": ([*SLURM, "--name", "a b"], "--name: a b"),
    "path": ([*SLURM, "run_dir=runs/nemo_run"], "run_dir=runs/nemo_run: NeMo-Run would replace"),
    "kubeflow": (["--executor", "kubeflow"], "--container-image"),
    "skypilot": (["--executor", "skypilot", *IMAGE], "invalid choice: 'skypilot'"),
    "gpus": ([*SLURM[:4], "--gpus-per-node", "1"], "--gpus-per-node: 1 is fewer than trainer.devices 2"),
    "objectives": ([*SLURM, "--objectives", "p,,original"], "--objectives: p,,original has an empty"),
    "objective": ([*SLURM, "--objectives", "p,focall-2"], "focall-2"),
    "seeds": ([*SLURM, "--seeds", "0,0"], "seed0 is asked for twice"),
    "objectives twice": ([*SLURM, "--objectives", "original,logp"], "original-seed0 is asked for twice"),
    "recipe": ([*SLURM, "optim.lrr=1"], "optim.lrr"),
    "layout": ([*SLURM, "--nodes", "3", "data.micro_batch_size=4"], "data.global_batch_size"),
    "preflight": ([*SLURM, "data.train=missing.jsonl"], "data.train: missing.jsonl does not exist"),
    "preflight of a cell": ([*SLURM, "--seeds", "0,1", "model.path=no/where/at/all"], "model.path"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_run_is_refused_in_one_line_before_anything_is_submitted(here, capsys, monkeypatch, name):
    monkeypatch.setenv("SLURM_CONF", "/there/is/no/cluster")  # and if it were not refused
    arguments, expected = BAD[name]
    before = sorted(Path().rglob("*"))
    assert main(["launch", "tiny.yaml", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert sorted(Path().rglob("*")) == before


def test_files_of_a_container_with_other_paths_are_left_to_the_job(here, capsys):
    arguments = ("data.train=/data/train.jsonl", *SLURM, *IMAGE, "--mount", f"{here}:/data")
    assert "data.train=/data/train.jsonl" in printed(capsys, *arguments)
    assert main(["launch", "tiny.yaml", *arguments[:-1], f"{here}:{here}", "--dry-run"]) == 2


def test_without_slurm_a_submission_says_so(here, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(here))
    assert main(["launch", "tiny.yaml", *SLURM]) == 2
    assert "sbatch is not on PATH" in capsys.readouterr().err


def documented() -> list[list[str]]:
    text = (Path(__file__).resolve().parents[2] / "docs" / "clusters.md").read_text(encoding="utf-8")
    return [shlex.split(line)[2:] for line in text.splitlines() if line.startswith("nemo-probsft launch ")]


@pytest.mark.parametrize("arguments", documented(), ids=" ".join)
def test_the_documented_commands_are_valid(monkeypatch, arguments):
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    monkeypatch.setattr(submit, "PACKAGES", {})  # the others' need not be installed for that
    monkeypatch.setattr(submit, "_check", lambda recipe, options: None)  # nor are models and data here
    parser = Parser()
    command.add_arguments(parser)
    submission = submit.checked(options_of(Options, parse(parser, arguments)))
    assert all(command[:2] == ["train", arguments[0]] for command in submission.commands.values())


def nemo_probsft(environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-m", "nemo_probsft", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def environment(folder):
    """As at a shell, with NeMo-Run's files in the test's folder."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    root = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), clean.get("PYTHONPATH")]))
    return {**clean, "PYTHONPATH": root, "NEMORUN_HOME": str(folder / "submitted"), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def trained(folder, environment):
    """metrics.jsonl of `nemo-probsft train tiny.yaml` at the shell."""
    recipe = str(folder / "tiny.yaml")
    command = [sys.executable, "-m", "nemo_probsft", "train", recipe, "run_dir=trained"]
    subprocess.run(command, env=environment, cwd=folder, check=True, capture_output=True, timeout=600)
    return (folder / "trained" / "metrics.jsonl").read_bytes()


def test_the_local_executor_runs_train(here, environment, trained):
    output = nemo_probsft(environment, "launch", "tiny.yaml", "run_dir=local", "--executor", "local")
    assert "What will be done" in output  # the job's own output
    assert Path("local/metrics.jsonl").read_bytes() == trained


def test_a_local_job_that_fails_is_an_error(here, environment):
    Path("broken.jsonl").write_text("no JSON\n")
    command = [sys.executable, "-m", "nemo_probsft", "launch", "tiny.yaml", "run_dir=broken", "data.train=broken.jsonl"]
    done = subprocess.run([*command, "--executor", "local"], env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "tiny failed; its output is in" in done.stderr
    assert not Path("broken").exists()


def test_a_local_job_ends_with_its_launch(here, environment):
    arguments = ["launch", "tiny.yaml", "run_dir=stopped", "trainer.max_steps=100000", "--executor", "local"]
    command = [sys.executable, "-m", "nemo_probsft", *arguments]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as launch:
        assert any("What will be done" in line for line in launch.stdout)  # the job is at work
        (job,) = [child for child in psutil.Process(launch.pid).children() if "train" in child.cmdline()]
        launch.terminate()
        _, error = launch.communicate(timeout=100)
    assert launch.returncode == 2
    assert error.splitlines()[-1].startswith("nemo-probsft: stopped by signal 15")
    assert not job.is_running()


ARRAY = ("--objectives", "original,p", "run_dir=array", *SLURM)
TWO_NODES = ("trainer.devices=1", "export.at_end=true", "--nodes", "2", "--time", "10", "--sbatch", "array=1")


def test_an_element_of_an_array_trains_on_two_nodes_of_slurm(here, environment, trained, tmp_path, capsys):
    """Two ranks of one model copy meet under torchrun, started by two slurmd; without Slurm, the array's script alone.

    The second element must learn what `train` learnt on one node with its objective, and the first must not run.
    """
    if slurm.installed():
        with slurm.cluster(tmp_path, 2) as with_slurm:
            output = nemo_probsft(environment | with_slurm, "launch", "tiny.yaml", *ARRAY, *TWO_NODES)
            job = output.partition("slurm_tunnel://nemo_run/")[2].split()[0]
            assert slurm.wait_for(with_slurm, job, 400) == {"COMPLETED"}
        assert Path("array/p-seed0/export/config.json").exists()
    else:
        script = printed(capsys, *ARRAY).partition("#!/usr/bin/bash\n")[2]
        path = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
        second = environment | {"SLURM_ARRAY_TASK_ID": "1", "PATH": path}
        subprocess.run(["bash", "-c", script], env=second, check=True, timeout=600)
    assert not Path("array/original-seed0").exists()
    assert Path("array/p-seed0/metrics.jsonl").read_bytes() == trained
