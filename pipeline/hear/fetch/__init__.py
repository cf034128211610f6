"""HEAR tasks out of archives, and the archives out of a Zenodo record."""
