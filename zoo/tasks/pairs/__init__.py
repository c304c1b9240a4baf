"""Pairs of documents: stand-ins for LRA's Retrieval, under names of their own."""
