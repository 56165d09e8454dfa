"""Plots and tables. Reads what runs left behind, never models."""
