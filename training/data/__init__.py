"""High-resolution frames: where they come from, how they are split and cut."""
