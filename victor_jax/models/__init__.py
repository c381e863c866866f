"""The model: vision tower, projector, staged language tower, and their composition.

Axis letters, in comments, docstrings and einsum strings:

    B  rows of the batch        D  model width
    I  images                   F  feed-forward width
    V  visual tokens of a row   N  query heads
    M  registers                K  key/value heads
    T  positions of a query     H  head width
    S  positions of a key       W  words (vocabulary)
    L  layers of a stage        P  patches of an image
"""
