"""One page from training runs, diagnoses and evaluations."""
