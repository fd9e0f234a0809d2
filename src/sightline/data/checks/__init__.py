"""What `sightline doctor` checks: duplicates, class names, image quality, leakage; and the fixes that it proposes."""
