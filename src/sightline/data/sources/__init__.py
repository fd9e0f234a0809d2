"""What a source of labeled images lists: folders, archives, manifests, idx files and arrays."""
