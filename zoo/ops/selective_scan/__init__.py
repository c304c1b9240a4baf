"""Mamba's selective state space scan (Gu and Dao 2023, arXiv:2312.00752)."""

from zoo.ops.selective_scan.api import selective_scan, selective_scan_step

__all__ = ["selective_scan", "selective_scan_step"]
