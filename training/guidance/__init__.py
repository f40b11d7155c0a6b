"""L_g, and how its gradient enters the predicted noise (DifIISR, Eq. 5-12)."""
