"""Parts of a comparison: what is run, what it would take, and what came of it."""
