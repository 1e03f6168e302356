"""Spatially guided contrastive learning (SGCL, Lin et al., Medical Image Analysis 89:102845, 2023)."""
