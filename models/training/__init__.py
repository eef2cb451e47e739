"""Training: from a retailer's history to a model file that `models.scorer` can load.

The only importer of pandas, scikit-learn and skl2onnx. Nothing that serves imports this package.
"""
