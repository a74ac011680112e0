"""Alignment: from a model that responds to one that responds as people prefer."""
