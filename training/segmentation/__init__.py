"""Semantic segmentation of super-resolved frames: training of SegFormer, mean IoU."""
