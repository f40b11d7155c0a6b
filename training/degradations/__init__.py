"""How a low-resolution frame comes about from a high-resolution one."""
