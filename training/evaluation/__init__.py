"""How good the results are, for pictures and for what reads them."""
