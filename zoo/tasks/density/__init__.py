"""Density estimation of images."""
