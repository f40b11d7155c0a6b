"""``difiisr evaluate --recorded``: what a robot really did, from the bag that it recorded."""
