"""How one answer is judged: mathematics, letters, programs."""
