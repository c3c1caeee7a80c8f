"""What the figures in docs/ come from; the product never imports it."""
