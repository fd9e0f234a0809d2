"""Sources of labeled images: folders, archives, manifests, IDX files and arrays."""
