"""Files that other programs write and read: labels, predictions, pre-annotations. Paths and arrays only."""
