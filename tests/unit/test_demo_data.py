"""The demo's tasks are what they claim to be, and its tokenizer and model are ones that every engine can load."""

import json
from collections import Counter

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Tokenizer

from nemo_probsft import demo_data
from nemo_probsft.data.rows import read_rows
from nemo_probsft.data.tokens import check_tokenizer, token_ids
from nemo_probsft.demo_data import make_demo


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo"), seed=0)


def pairs(path) -> list[tuple[str, str]]:
    return [tuple(message["content"] for message in row.messages) for row in read_rows(path)]


def addition(prompt: str) -> str:
    a, b = prompt.removesuffix("=").split("+")
    return str(int(a) + int(b))


def contents(directory) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_seed_is_the_same_bytes_every_time(files, tmp_path):
    directory = files.random_base.parent
    first, generator = contents(directory), torch.get_rng_state()
    make_demo(directory, seed=0)  # once more over a finished one
    make_demo(tmp_path / "again", seed=0)
    make_demo(tmp_path / "other", seed=1)
    assert contents(directory) == contents(tmp_path / "again") == first
    assert torch.equal(torch.get_rng_state(), generator)  # the global generator is left alone
    other = contents(tmp_path / "other")
    same = {name for name in first if first[name] == other[name]}
    assert {name for name in first if "token" not in name and "config" not in name} & same == set()


def test_pretraining_set_knows_sums_and_letters_but_no_cipher(files):
    rows = pairs(files.pretrain)
    tasks = Counter(prompt[:5] if prompt[0] == "c" else "sum" for prompt, _ in rows)
    assert set(tasks) == {"sum", "copy:"}
    assert tasks["sum"] / len(rows) == demo_data.ADDITIONS_IN_PRETRAIN
    for prompt, response in rows:
        assert response == (prompt[5:-1] if prompt[0] == "c" else addition(prompt))
    first = Counter(prompt[0] == "c" for prompt, _ in rows[:1000])
    assert min(first.values()) > 100  # in mixed order


def test_strong_set_has_wrong_answers_in_training_alone(files):
    train, test = pairs(files.strong_train), pairs(files.strong_test)
    wrong = [response for prompt, response in train if response != addition(prompt)]
    assert len(wrong) == round(0.3 * len(train))
    assert all(20 <= int(response) <= 198 for response in wrong)
    assert len(set(wrong)) > 100
    assert all(response == addition(prompt) for prompt, response in test)
    prompts = [prompt for prompt, _ in train + test]
    assert len(set(prompts)) == len(prompts)
    assert 0.2 < sum(response != addition(prompt) for prompt, response in train[:200]) / 200 < 0.4  # in mixed order


def test_weak_set_is_one_cipher_and_tests_unseen_words(files):
    train, test = pairs(files.weak_train), pairs(files.weak_test)
    cipher = {}
    for prompt, response in train:
        for plain, coded in zip(prompt.removeprefix("code:")[:-1], response, strict=True):
            assert cipher.setdefault(plain, coded) == coded
    assert len(cipher) == len(set(cipher.values())) == 26
    assert all(plain != coded for plain, coded in cipher.items())
    assert all(response == "".join(cipher[letter] for letter in prompt[5:-1]) for prompt, response in test)
    prompts = [prompt for prompt, _ in train + test]
    assert len(set(prompts)) == len(prompts)


def test_tokenizer_is_one_token_a_byte_without_bos(files):
    tokenizer = AutoTokenizer.from_pretrained(files.random_base)
    assert len(tokenizer) == demo_data.VOCAB_SIZE == 320
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, None)
    assert tokenizer.chat_template is None
    text = 'Let $x=\\frac{1}{2}$.\n\n  "caf\u00e9" \u2264 \U0001f600'
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer(text)["input_ids"]) == len(text.encode())
    row = next(iter(read_rows(files.strong_test)))
    ids, is_target = token_ids(tokenizer, row)
    assert tokenizer.convert_ids_to_tokens(ids) == [
        *row.messages[0]["content"],
        *row.messages[1]["content"],
        "<|endoftext|>",
    ]
    assert is_target == [0] * 6 + [1] * (len(ids) - 6)


def test_tokenizer_is_the_same_under_the_qwen2_class(files, tmp_path):
    """transformers 5 rebuilds it as Qwen2Tokenizer from vocabulary and merges; the slow class of 4 is that pipeline."""
    core = json.loads((files.random_base / "tokenizer.json").read_text())["model"]
    assert core["merges"] == []
    vocabulary, merges = tmp_path / "vocab.json", tmp_path / "merges.txt"
    vocabulary.write_text(json.dumps(core["vocab"]))
    merges.write_text("#version: 0.2\n")
    qwen2 = Qwen2Tokenizer(str(vocabulary), str(merges), pad_token="<pad>")
    ours = AutoTokenizer.from_pretrained(files.random_base)
    assert len(qwen2) == len(ours)
    for text in [
        "37+58=",
        "code:hello=",
        "  I'll\t\n\n x ",
        "e\u0301\u00e9 \U0001f600",
        "12<|endoftext|>",
        "<reserved_3>",
    ]:
        ids = ours(text)["input_ids"]
        assert qwen2(text)["input_ids"] == ids
        assert qwen2.decode(ids) == ours.decode(ids)


def test_base_model_fits_the_tokenizer_and_every_layout(files):
    model = AutoModelForCausalLM.from_pretrained(files.random_base)
    config = model.config
    check_tokenizer(AutoTokenizer.from_pretrained(files.random_base), config.vocab_size)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert 0.55e6 < sum(parameter.numel() for parameter in model.parameters()) < 0.7e6
    assert config.hidden_size // config.num_attention_heads == 32
    assert not config.tie_word_embeddings
    for size in (config.vocab_size, config.num_key_value_heads, config.intermediate_size):
        assert size % 2 == 0
    assert sorted(path.suffix for path in files.random_base.iterdir() if path.name.startswith("model")) == [
        ".safetensors"
    ]
    nll = torch.nn.functional.cross_entropy(model(torch.arange(320)[None]).logits[0, :-1], torch.arange(1, 320))
    assert 5 < nll < 8  # near log 320 = 5.8: random, not degenerate
