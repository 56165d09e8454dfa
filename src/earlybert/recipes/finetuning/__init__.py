"""Fine-tuning: its data and plan, the three stages, and every method."""
