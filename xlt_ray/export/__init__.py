"""From a bundle to a fast artefact: the ONNX graph, int8, a smaller vocabulary, and agreement with the bundle."""
