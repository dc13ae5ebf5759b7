"""Segmentation heads on NAT and DiNAT: UPerNet, MaskFormer, Mask2Former, OneFormer. One file each."""
