"""Sources of labeled images: folders, archives, manifests, idx files and arrays."""
