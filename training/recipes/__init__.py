"""What is trained beside the loop: judges, ablation, beginnings, and their curves."""
