"""Answers that keep to a grammar: what may be asked, how it becomes one, and the masks that it makes."""
