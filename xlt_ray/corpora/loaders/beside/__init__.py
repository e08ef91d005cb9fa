"""Text beside labelled rows: parallel text, and plain text, both without labels."""
