"""What a ticket is compared with. Each room only says how it prepares or changes a model; the recipes run it."""
