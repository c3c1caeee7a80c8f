"""The table of what a Bridge configuration must not have names fields that the installed Bridge has, read as source."""

from __future__ import annotations

import json
import subprocess

import pytest

from nemo_probsft.config.exactness import BRIDGE_SETTINGS
from tests.support.engine import BRIDGE_PYTHON

SECTIONS = {
    "model": {
        *("ModelParallelConfig", "TransformerConfig", "GPTModelProvider", "Gemma2ModelProvider"),
        "DistillationProvider",
    },
    "mixed_precision": {"MixedPrecisionConfig"},
    "comm_overlap": {"CommOverlapConfig"},
    "ddp": {"DistributedDataParallelConfig"},
    "dist": {"DistributedInitConfig"},
    "optimizer": {"OptimizerConfig"},
    "train": {"TrainingConfig"},
    "dataset": {"GPTSFTDatasetConfig", "DirectHFSFTDatasetConfig"},
    "rerun_state_machine": {"RerunStateMachineConfig"},
    "inprocess_restart": {"InProcessRestartConfig"},
    "rng": {"RNGConfig"},
    "peft": {"LoRA"},
    "checkpoint": {"CheckpointConfig"},
}
# Importing Bridge would take a minute. Values: the text of the default.
READ = """
import ast, json, pathlib, sysconfig
found = {}
for path in pathlib.Path(sysconfig.get_paths()["purelib"], "megatron").rglob("*.py"):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ClassDef):
            for line in node.body:
                if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                    default = None if line.value is None else ast.unparse(line.value)
                    found.setdefault(node.name, {})[line.target.id] = default
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def classes():
    done = subprocess.run([BRIDGE_PYTHON, "-W", "ignore", "-c", READ], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.bridge
def test_every_setting_is_a_field_of_its_section(classes):
    known = {f"{section}.{name}" for section, kinds in SECTIONS.items() for kind in kinds for name in classes[kind]}
    assert [rule.name for rule in BRIDGE_SETTINGS if rule.name not in known] == ["objective"]
    assert "objective" not in classes["ConfigContainer"]


@pytest.mark.bridge
def test_what_is_looked_at_is_where_bridge_keeps_it(classes):
    container = classes["ConfigContainer"]
    assert {rule.name.partition(".")[0] for rule in BRIDGE_SETTINGS} - container.keys() == {"objective"}
