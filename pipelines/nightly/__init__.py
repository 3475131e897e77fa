"""The parts of `segment`: what there is to do and why, one run of it, and what its workers do.

    listing, image_manifests -> plan, deletions -> run: fetch -> worker (tiles, rival) -> rows -> publication

Each image that a run planned ends in exactly one row (`pipelines.tables.commits`).
"""
