"""Detectors on NAT and DiNAT: Faster, Mask and Cascade (Mask) R-CNN, from an image to boxes and masks.

Shapes are fixed throughout, so that every runtime can run the graph: B images, R regions, N detections. What there is
less of is padded, and scores below zero mark the padding.
"""
