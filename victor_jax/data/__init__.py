"""From files to batches on the host: records, prompt templates, label masks, images. No JAX in the readers."""
