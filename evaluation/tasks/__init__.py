"""The task pack of lm-evaluation-harness: one YAML file per benchmark, and the functions that they name."""
