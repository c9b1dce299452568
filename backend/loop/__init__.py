"""The use cases, each readable top to bottom."""
