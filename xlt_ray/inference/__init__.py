"""Trained models outside of training: bundles, served artefacts, and the engines that answer with them."""
