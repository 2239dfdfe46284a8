"""Classifiers that explain themselves: plain, LFI-CAM and ABN on any trunk, behind one contract."""
