"""TFDS builders of the data sets, all stored as ArrayRecord files and read without TensorFlow."""
