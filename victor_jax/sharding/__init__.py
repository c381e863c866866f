"""Meshes, and where each parameter lies on one."""
