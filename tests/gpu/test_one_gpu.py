"""The real trainer on one GPU: NeMo with Transformer Engine, fp32, as the recipes of the demo run it."""

from __future__ import annotations

import pytest

from tests.support import one_device

pytestmark = pytest.mark.gpu


def test_train_diagnose_resume_after_a_kill_and_export(tmp_path):
    one_device.check_train_diagnose_resume_export(tmp_path)


def test_packed_rows_have_the_first_step_of_their_examples(engine, tmp_path):
    one_device.check_packed_rows(engine, tmp_path)


def test_the_first_step_is_that_of_float64(engine, tmp_path):
    one_device.check_first_step_against_float64(engine, tmp_path)
