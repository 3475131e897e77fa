"""Image and label files that nobody vouches for: from bytes to upright 8-bit RGB, or a reason why not.

`images` is the way in, for a whole image; `windows` the one for images too large for that.
"""
