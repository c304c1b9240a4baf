"""Classification of sequences that need no download: stand-ins, each under a name of its own."""
