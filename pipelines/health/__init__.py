"""The checks of `pipelines.doctor`: facts of every image, findings made of them, pictures, a page.

1. `facts` reads a pair of files in a Ray task and says what is in them: one row, whatever is wrong with the pair.
2. Rows are put in the order of the listing; that table is the state which all checks share. `file_checks`,
   `label_checks`, `class_checks`, `image_checks` and `duplicates` make `Finding`s of it, by the limits in `limits`.
3. `recovery` measures on a sample what enlargement by 8, 16 and 32 leaves of the labels.
4. `examples` draws the images that findings name, `report` the page.
"""
