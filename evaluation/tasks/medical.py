"""The ten sources of the m1 protocol: multiple choice, answered in free text."""

import json
from pathlib import Path

from datasets import Dataset

from evaluation.choices import medical_letter
from evaluation.tasks.answers import documents
from evaluation.tasks.fields import letter_of, options_of, shown, text_of
from evaluation.tasks.sets import checked, read_set
from nemo_probsft.data.prompts import boxed, with_options
from nemo_probsft.data.records import Record, parse_json
from nemo_probsft.files import first_line

FIELDS = ["question", "options", "answer_idx"]
REPOSITORY, ALL_SOURCES = "UCSC-VLAA/m1_eval_data", "m1_eval_data.json"  # m1's own file: source -> rows


def load_questions(*, source: str, data_dir: str | None = None, **_metadata) -> dict[str, Dataset]:
    """Documents of one source, from m1's own file, or from `source`.jsonl or .parquet; options are letter -> text."""
    whole = _published() if data_dir is None else Path(data_dir) / ALL_SOURCES
    if whole.is_file():
        docs = _documents_of(whole, source)
    else:
        published, hint = f"{source} of {REPOSITORY}", f"its whole {ALL_SOURCES} beside it"
        docs = read_set(data_dir=data_dir, file=source, dataset=published, fields=FIELDS, document=_document, hint=hint)
    return documents(docs)


def _published() -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(REPOSITORY, ALL_SOURCES, repo_type="dataset"))
    except OSError as error:
        raise ValueError(f"{REPOSITORY}: not loaded ({first_line(error)}); give a local copy with --data-dir") from None


def _documents_of(path: Path, source: str) -> list[dict]:
    sources = parse_json(path.read_bytes(), str(path), remedy=f"take {REPOSITORY}")
    if not isinstance(sources, dict) or not all(isinstance(rows, list) for rows in sources.values()):
        raise ValueError(f"{path}: must be one object that holds the rows of each source; take {REPOSITORY}")
    if source not in sources:
        raise ValueError(f"{path}: no source {source!r}, it has {', '.join(sources)}; take {REPOSITORY}")
    found = [Record(row, f"{path} {source} row {number}", number) for number, row in enumerate(sources[source], 1)]
    return checked(found, FIELDS, f"{path} {source}", _document)


def _document(row: dict) -> dict:
    if not isinstance(row["options"], dict):
        raise ValueError(f"options is {shown(row['options'])}: must be an object of letters and texts")
    options = options_of(row["options"], "options")
    return {
        "prompt": boxed(with_options(text_of(row, "question"), options)),
        "answer": letter_of(row, "answer_idx", options),
        "options": json.dumps(options, ensure_ascii=False),
    }


def score(doc: dict, results: list[list[str]]) -> dict[str, list[float]]:
    """score: the extracted letter is the answer. letter_found: it stood in the answer, not guessed from its words."""
    (answers,) = results
    options = json.loads(doc["options"])
    found = [medical_letter(answer, options) for answer in answers]
    return {
        "score": [float(letter == doc["answer"]) for letter, _ in found],
        "letter_found": [float(is_letter) for _, is_letter in found],
    }
