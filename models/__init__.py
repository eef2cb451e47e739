"""Machine-learned models: what they see (`features`), what ships with them (`manifest`) and how they score (`scorer`).

Scoring is pure apart from loading the file. `models.training` makes the files and is never imported to serve.
"""
