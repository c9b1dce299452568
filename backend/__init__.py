"""Active-learning backend for Label Studio."""
