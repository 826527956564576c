"""Grids of pictures: axes as text, the cells that follow from them, the labelled picture. Imports no torch."""
