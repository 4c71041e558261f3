"""Image files in and out: every reader turns files into ``(channels, z, y, x)`` arrays with a geometry, and back."""
