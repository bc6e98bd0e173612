"""The frameworks of a race, and the exporters that give each of them our Graph in its own format."""
