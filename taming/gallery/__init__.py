"""The pictures of docs/gallery.md, which `scripts/gallery.py` makes."""
