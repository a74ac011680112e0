"""Recipes of the zoo: one module a model, so that a change spoils one model only.

Nothing is imported here: it would belong to the code behind every recipe.
"""
