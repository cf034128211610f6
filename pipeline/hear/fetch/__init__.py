"""Download of HEAR task archives from a Zenodo record, and unpacking of them."""
