"""Object detectors that judge super-resolved frames: training, inference, average precision."""
