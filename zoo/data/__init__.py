"""Datasets in, padded batches out: sources, a seeded global order, Grain for workers and threads, prefetch to device.

`zoo.data.source` says what a dataset is, `zoo.data.pipeline` turns one into batches, `zoo.data.prefetch` keeps a few of
them on the device. Nothing here is imported eagerly: Grain and JAX load when the first batch is asked for.
"""
