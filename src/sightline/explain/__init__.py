"""Saliency maps for a class: Grad-CAM, occlusion, RISE, and a faithfulness check."""
