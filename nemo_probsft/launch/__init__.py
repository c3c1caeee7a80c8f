"""`nemo-probsft launch`: submission to a scheduler through NeMo-Run."""
