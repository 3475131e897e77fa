"""The stages, in order, and what each leaves on storage.

1. `prepare`        raw dataset            -> prepared dataset: Parquet shards per split, `manifest.json`
2. `fit_label_pca`  prepared labels        -> label PCA: basis, eigenvalues, recovery scores, `manifest.json`
3. `train`          prepared dataset, recipe, label PCA -> model folder, MLflow run, registered version
4. `evaluate`       model, prepared split  -> scores, per-image table, pictures
5. `segment`        model, image bucket    -> tables of masks, predictions, failures, deletions; snapshot
6. `compare`        MLflow runs            -> one table, one page

Before them, `doctor` examines a raw or prepared dataset, and reports what is wrong with it.

Beside them, on the tables of `segment`: `maintain` drops old masks and merges small files; `export` gives masks to
other tools.

Stages meet only on storage: each reads artifact folders and writes one, whose `manifest.json` comes last.
"""
