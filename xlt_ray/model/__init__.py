"""The network: a multilingual encoder, pooling and a head, and how texts become its batches."""
