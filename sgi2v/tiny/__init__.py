"""The embedded checkpoint: a small trained model of SVD's architecture, with its model card."""
