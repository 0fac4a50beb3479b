"""Guests made of Debian or Ubuntu packages, by mmdebstrap, apt and dpkg."""
