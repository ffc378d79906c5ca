"""The video server of Halfreel: renders clips with one image-to-video model and the keyframe model in front of it."""
