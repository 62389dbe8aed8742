"""Runs everything on Pythons that this machine lacks: those of Debian's sid, in a chroot."""
