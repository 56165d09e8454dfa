"""Pre-training runs side by side, each fine-tuned on the same tasks: Tables 4, 8 and 9, Figures 1 and 4."""
