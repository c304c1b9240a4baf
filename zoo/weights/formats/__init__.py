"""The published formats: one file a code base."""
