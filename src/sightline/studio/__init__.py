"""`sightline studio`: a local page to look at labeled images and to correct their labels."""
