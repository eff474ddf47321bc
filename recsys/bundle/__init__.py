"""The bundle: one checked folder from which everything is served. Plain files, no pickle, no archive."""
