"""Patch-based contrastive segmentation: nuclei without labels."""
