"""Bundles for sites without a network: images, charts and models in one directory, each file named by its digest."""
