"""Compression: the same model in fewer bits, or its abilities in a smaller one."""
