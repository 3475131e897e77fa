"""The tables of `segment`: their schemas, how they grow, and how they are read, merged and exported."""
