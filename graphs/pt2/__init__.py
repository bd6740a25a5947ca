"""Models that ``torch.export.save`` wrote: an archive of a program as JSON and of tensors as bytes, read within bounds.

Nothing outside of this room and of ``graphs/frontend/exported.py`` knows the format.
"""
