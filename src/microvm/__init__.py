"""Declare, build and run MicroVMs."""
