"""Whether generated images follow the depth that they were given."""
