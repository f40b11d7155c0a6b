"""The published DifIISR: networks, sampler, conversion of its checkpoints, proof of equality."""
