"""What a YAML file or a flag may say: frozen, validated when built, saved beside every result."""
