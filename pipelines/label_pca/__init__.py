"""The parts of `fit_label_pca`: the Ray tasks over shards, the fit, and its report."""
