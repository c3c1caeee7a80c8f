"""The harness's vLLM backend with reproducible sampling, and with prompts that are never cut."""

import json
import math
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

from evaluation.completions import Completion, Place, Speed
from evaluation.prompt_tokens import prompt_ids
from evaluation.vllm_cpu import register_vllm_cpu
from nemo_probsft.data.ends import template_ends

register_vllm_cpu()
# The engine in this process, not in one of its own that would outlive a `kill -9` of this one (vLLM 0.32: its workers
# watch their parent, EngineCore does not). vLLM's page on reproducibility asks for it, too.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

import torch  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.utils import postprocess_generated_text  # noqa: E402
from lm_eval.models.vllm_causallms import VLLM  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from vllm import SamplingParams, TokensPrompt  # noqa: E402
from vllm.distributed import cleanup_dist_env_and_memory  # noqa: E402

MIN_BATCHED_TOKENS = 4096  # of a step on CPU; a whole prompt must fit
TOKENIZER_PROBE = "The answer: 12+34=46, it's 1,000.5 %.\n\n  def f(x):\n\treturn {x} ** 2  # naïve"


class ReproducibleVLLM(VLLM):
    """As upstream, except where upstream would make a benchmark number wrong without saying so.

    - Every request has its own seed, from (seed, item, prompt, repeat): an answer depends neither on the other requests
      of the batch nor on where an interrupted evaluation goes on, and two models see the same random numbers.
    - A generation budget that exceeds the context shrinks to what the prompt leaves. Upstream cuts the prompt instead
      (`maybe_truncate(shrink_gen_toks=False)`): a 4096-token budget in a 4096-token context would leave no prompt.
    - Prompts get the ids of training: no BOS where the chat template wrote none.
    - An answer also ends with the token that the chat template ends answers with, whatever eos_token is; vLLM itself
      adds those of generation_config.json.
    - Answers come as they are finished, with their token counts and finish reasons.
    """

    sampling_seed: int = 0
    end_ids: list[int]  # of the chat template
    num_tokens: int = 0  # of finished answers

    def answers(
        self, requests: list[Instance], *, rendered: bool, known: Collection[Place] = ()
    ) -> Iterator[dict[Place, Completion]]:
        """After every step of the engine, the answers that ended in it, often none.

        requests: one an item, whose `doc_id` is the item's index, with `repeats`. rendered: whether their prompts are a
        chat template's texts. known: answers that are not wanted, because there are some.
        """
        prompts = prompt_ids(self.tokenizer, [request.args[0] for request in requests], rendered=rendered)
        too_long: dict[Place, Completion] = {}
        wanted: list[tuple[Place, TokensPrompt, SamplingParams]] = []
        for request, prompt in zip(requests, prompts, strict=True):
            for place in (Place(request.doc_id, repeat) for repeat in range(request.repeats)):
                if place in known:
                    continue
                if len(prompt) >= self.max_length:
                    too_long[place] = Completion("", 0, "prompt_too_long")
                    continue
                params = self._sampling_params(request, len(prompt), self._seed(request, place))
                wanted.append((place, TokensPrompt(prompt_token_ids=prompt), params))
        if too_long:
            yield too_long
        if wanted:
            yield from self._run(*map(list, zip(*wanted, strict=True)))

    def speed(self) -> Speed:
        """Of the answers that `answers` is at."""
        running = self.model.llm_engine.output_processor.request_states.values()
        lengths = [(state.detokenizer.num_output_tokens(), state.max_tokens_param) for state in running]
        return Speed(self.num_tokens + sum(n for n, _ in lengths), sum(most - n for n, most in lengths))

    def _run(
        self, places: list[Place], prompts: list[TokensPrompt], params: list[SamplingParams]
    ) -> Iterator[dict[Place, Completion]]:
        """Step the engine until all are finished."""
        engine, self.num_tokens = self.model.llm_engine, 0
        # An output has the number of its request; `enqueue` gives it with a random end (vLLM 0.32).
        numbers = [name.partition("-")[0] for name in self.model.enqueue(prompts, params, use_tqdm=False)]
        requests = dict(zip(numbers, zip(places, params, strict=True), strict=True))
        while engine.has_unfinished_requests():
            finished = {}
            for output in engine.step():
                place, asked = requests[output.request_id]
                finished[place] = _completion(output, asked.stop)
            self.num_tokens += sum(completion.num_tokens for completion in finished.values())
            yield finished

    def _sampling_params(self, request: Instance, prompt_length: int, seed: int) -> SamplingParams:
        eos = self.tokenizer.decode(self.eot_token_id)
        options, stop, budget = self.modify_gen_kwargs(request.args[1], eos=eos, default_max_gen_toks=self.max_gen_toks)
        return SamplingParams(
            max_tokens=max(1, min(budget, self.max_length - prompt_length)),
            stop=stop,
            seed=seed,
            stop_token_ids=self.end_ids,
            **options,
        )

    def _seed(self, request: Instance, place: Place) -> int:
        key = f"{self.sampling_seed}|{place.item}|{place.repeat}|{request.args[0]}"
        return int.from_bytes(sha256(key.encode()).digest()[:7], "big")


def _completion(output, stop: list[str]) -> Completion:
    answer = output.outputs[0]
    text = postprocess_generated_text(answer.text, stop, None)
    return Completion(text, len(answer.token_ids), answer.finish_reason)


@contextmanager
def open_engine(model_dir: Path, *, max_model_len: int, seed: int) -> Iterator[ReproducibleVLLM]:
    """Serve `model_dir` with vLLM (start: 10-60 s)."""
    lm = None
    try:
        lm = ReproducibleVLLM(
            pretrained=str(model_dir),
            **(_gpu_options(model_dir) if torch.cuda.is_available() else _cpu_options(max_model_len)),
            max_model_len=max_model_len,
            enable_prefix_caching=False,  # a cached prefix is computed in other batch shapes: other low-order bits
            seed=seed,
        )
        lm.sampling_seed, lm.end_ids = seed, template_ends(lm.tokenizer)
        check_tokenizer(model_dir, lm)
        yield lm
    finally:
        # The next model starts in this process, also after one that failed: free memory and process groups first.
        if lm is not None:
            lm.model.llm_engine.engine_core.shutdown()
            del lm.model
        cleanup_dist_env_and_memory()


def _gpu_options(model_dir: Path) -> dict[str, Any]:
    """As many GPUs as divide the attention heads."""
    heads = json.loads((model_dir / "config.json").read_text(encoding="utf-8"))["num_attention_heads"]
    return {"dtype": "auto", "tensor_parallel_size": math.gcd(heads, torch.cuda.device_count())}


def _cpu_options(max_model_len: int) -> dict[str, Any]:
    """float32: models that run on CPU are small, and answers are then those of training to the last bits.

    No chunked prefill: vLLM 0.32 rewinds the generator of a seeded request whose prompt was cut at the end of a step,
    which CPU generators cannot do ("RuntimeError: CPU Generator does not use offset", in gpu_model_runner.py).
    """
    return {
        "dtype": "float32",
        "enforce_eager": True,
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(max_model_len, MIN_BATCHED_TOKENS),
    }


def check_tokenizer(model_dir: Path, lm: ReproducibleVLLM) -> None:
    """Raises: ValueError when prompts get other ids than tokenizer.json gives, that is, other ids than in training.

    transformers 5 reads the tokenizer.json of some model types (qwen2 among them) through the class of that type, with
    its own pre-tokenizer (MODELS_WITH_INCORRECT_HUB_TOKENIZER_CLASS in transformers.models.auto.tokenization_auto).
    """
    path = model_dir / "tokenizer.json"
    if not path.is_file():
        return
    served = lm.tokenizer(TOKENIZER_PROBE, add_special_tokens=False)["input_ids"]
    if served != Tokenizer.from_file(str(path)).encode(TOKENIZER_PROBE, add_special_tokens=False).ids:
        raise ValueError(
            f"{path}: {type(lm.tokenizer).__name__} of transformers gives other ids than this file, so prompts would"
            " not be those of training; save the tokenizer in the form of its model type"
        )
