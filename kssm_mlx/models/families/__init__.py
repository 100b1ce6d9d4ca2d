"""Facts about each family, one file each: what loading, export, grafts and freezing must know of it.

A full citizen is its model (models/NAME.py), its facts here, and a test. `models.FAMILIES` lists the files.
"""
