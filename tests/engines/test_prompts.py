"""A prompt has the same token ids in training and in evaluation.

Rows that `data prepare` wrote and `train` tokenises, against the requests that the harness builds of the same items,
each in its own environment (transformers 4 and 5).
"""

import json
import subprocess
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nemo_probsft.data import prompts, tokens
from nemo_probsft.data.domains.write import write_domain
from nemo_probsft.data.rows import read_rows
from nemo_probsft.run.eval_env import evaluation_python
from tests.support import published_sets
from tests.support.published_sets import write

ROOT = Path(__file__).parents[2]
CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n\n{{ m.content | trim }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n\n{% endif %}"
)
# name -> (the tokenizer adds a BOS by itself, chat template, BOS tokens in a prompt)
TOKENIZERS = {
    "plain": (False, None, 0),
    "plain-bos": (True, None, 1),
    "plain-space": (False, None, 0),
    "chatml": (False, CHATML, 0),
    "chatml-bos": (True, CHATML, 0),
    "llama": (False, LLAMA, 1),
    "llama-bos": (True, LLAMA, 1),
}
QUESTION, WORDS = "How many of 7 naïve\n  cats\tare 1,000.5 %?", {"A": "none", "B": "all 7"}
LISTED = QUESTION + "".join(f"\n{letter}. {text}" for letter, text in WORDS.items())


def make_tokenizer(directory: Path, adds_bos: bool, template: str | None) -> Path:
    """Bytes with two merges; it is no class of its own, so transformers 5 reads tokenizer.json as it is.

    A directory "plain-space" gets one that puts a space before every text.
    """
    special = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    merges = [("a", "t"), ("Ġ", "Ġ")]
    vocabulary = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in merges)]
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocabulary)}, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if directory.name == "plain-space":
        core.normalizer = normalizers.Prepend(" ")
    core.decoder = decoders.ByteLevel()
    if adds_bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", additional_special_tokens=special[2:]
    )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(directory)
    return directory


def write_pairs(train: Path, test: Path) -> dict[str, Path]:
    """The same item in the published schema of the training set and in that of the test sets: domain -> source."""
    puzzle = {"question": "What word does this say?\n\n #  # \n ####\n #  #\n", "answer": "H"}
    item = published_sets.openbookqa("test", 1)
    for split in ("train", "validation", "test"):
        write(train / f"openbookqa/{split}.parquet", item)
    for part in ("train", "test"):
        write(train / f"figfont/{part}.jsonl", [puzzle])
    for name in ("math_oai", "aime24", "amc23"):
        write(test / f"{name}.jsonl", [{"problem": QUESTION, "answer": "7"}])
    write(test / "minerva_math.jsonl", [{"problem": QUESTION, "solution": "$\\boxed{7}$"}])
    write(test / "olympiadbench.jsonl", [{"question": QUESTION, "final_answer": ["7"]}])
    write(test / "MedQA_USLME_test.jsonl", [{"question": QUESTION, "options": WORDS, "answer_idx": "B"}])
    write(test / "figfont.jsonl", [puzzle])
    write(test / "openbookqa.jsonl", item)
    medical = published_sets.M23K[0] | {"prompt": LISTED}
    return {
        "math": write(train / "math.jsonl", [published_sets.NUMINA_MATH[1] | {"problem": QUESTION}]),
        "medical": write(train / "medical.parquet", [medical]),
        "figfont": train / "figfont",
        "openbookqa": train / "openbookqa",
    }


TASKS = {
    "math": ["math_500", "minerva_math", "olympiadbench", "aime24", "amc23"],
    "medical": ["medqa"],
    "figfont": ["figfont"],
    "openbookqa": ["openbookqa_letter"],
}


@pytest.fixture(scope="module")
def ids(tmp_path_factory):
    """(training, evaluation): tokenizer -> domain or task -> ids of the prompt."""
    root = tmp_path_factory.mktemp("prompts")
    sources = write_pairs(root / "sources", root / "test")
    tokenizers = {name: make_tokenizer(root / name, *settings[:2]) for name, settings in TOKENIZERS.items()}
    training: dict[str, dict[str, list[int]]] = {name: {} for name in TOKENIZERS}
    for domain, source in sources.items():
        write_domain(domain, root / "data" / domain, source=str(source))
        row = next(read_rows(root / "data" / domain / "train.jsonl"))
        for name, directory in tokenizers.items():
            row_ids, is_target = tokens.token_ids(AutoTokenizer.from_pretrained(directory), row)
            training[name][domain] = row_ids[: is_target.index(1)]
    tasks = ",".join(task for names in TASKS.values() for task in names)
    command = [evaluation_python(), "-m", "tests.support.harness_prompts", root / "test", tasks, *tokenizers.values()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    return training, {name: found[str(directory)] for name, directory in tokenizers.items()}


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("domain", TASKS)
def test_the_harness_asks_with_the_ids_that_were_trained(ids, tokenizer, domain):
    training, evaluation = ids
    expected = training[tokenizer][domain]
    assert len(expected) > 40
    for task in TASKS[domain]:
        assert evaluation[tokenizer][task] == expected, task


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_no_prompt_has_a_second_bos_or_a_template_in_a_template(ids, tokenizer):
    _, template, num_bos = TOKENIZERS[tokenizer]
    for found in [*ids[0][tokenizer].values(), *ids[1][tokenizer].values()]:
        assert found.count(0) == num_bos  # <s>
        turns = 0 if template is None else 3 if template == CHATML else 2
        assert found.count(2) == turns  # <|im_start|>: of the user, of the answer, of CHATML's default system line


@pytest.mark.parametrize("domain", TASKS)
def test_a_space_before_every_text_is_before_prompts_alone(ids, domain):
    training, _ = ids
    spaced, plain = training["plain-space"][domain], training["plain"][domain]
    assert spaced != plain
    assert len(spaced) in (len(plain), len(plain) + 1)


def test_a_template_in_a_template_would_be_seen(ids, tmp_path):
    """What the reference code does to Llama's prompts: it wraps the rendered text in a template again."""
    tokenizer = AutoTokenizer.from_pretrained(make_tokenizer(tmp_path, *TOKENIZERS["llama-bos"][:2]))
    message = {"role": "user", "content": prompts.boxed(QUESTION)}
    once = tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
    twice = tokens.prompt_ids(tokenizer, {"prompt": once})
    assert tokens.prompt_ids(tokenizer, {"messages": [message]}) == ids[0]["llama-bos"]["math"] != twice
    assert (twice.count(0), twice.count(2)) == (2, 4)
