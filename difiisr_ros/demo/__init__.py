"""The demo: a thermal stream played through DDS, super-resolved, recorded and shown."""
