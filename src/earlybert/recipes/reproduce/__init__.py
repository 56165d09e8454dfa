"""The paper's tables and figures, one by one: run them, set them beside the paper's numbers, judge its claims."""
