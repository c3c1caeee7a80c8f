"""What a diagnosis is made of: log p of the targets under the base model, statistics of it, and the page of both."""
