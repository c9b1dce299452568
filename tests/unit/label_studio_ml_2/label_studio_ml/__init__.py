"""Stands in for label-studio-ml 2.x, which is not on PyPI: its base class and its routes, as far as a model sees them.

Written from what that release does (label_studio_ml/model.py and api.py of its repository), not copied from it.
"""
