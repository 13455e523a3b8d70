"""Many clips, films and many machines, on Ray; no part of the extension."""
